"""Held-out dialogues, whole, apart from the training dialogues.

    python -m study.curate split mix.jsonl.gz --n 24 --source sharegpt --out DIR

Writes DIR/train.jsonl.gz and DIR/heldout.jsonl.gz, the rows as they were read. Dialogues that ask
the same (text/dialogues.py, split_key) fall on one side. Left out: a split by tokens (data.py
pack --eval-fraction splits by dialogues, of all sources).
"""

import pathlib

from study import rows
from text import dialogues
from text.rows import shuffled


def run(
    paths: list[str], n: int, source: str | None, seed: int, out: str | pathlib.Path, max_bad: float
) -> None:
    """The command. source: of the held-out dialogues; None: any."""
    out, read = pathlib.Path(out), list(rows.each(paths, rows.sourced, max_bad))
    held = draw(read, n, source, seed)
    with rows.locked(out):
        for name, wanted in (("heldout", True), ("train", False)):
            chosen = [d for k, d in enumerate(read) if (k in held) is wanted]
            with rows.gzip_whole(out / f"{name}.jsonl.gz") as stream:
                stream.writelines(map(rows.json_line, chosen))
    of = f" of {source}" if source else ""
    print(f"split: {len(held):,} dialogues{of} held out, {len(read) - len(held):,} to train on")
    print(f"{out / 'heldout.jsonl.gz'}, {out / 'train.jsonl.gz'}")


def draw(read: list[dict], n: int, source: str | None, seed: int) -> set[int]:
    """The places of the held-out dialogues: whole groups of one split key, n dialogues or fewer."""
    groups: dict[int, list[int]] = {}
    for place, dialogue in enumerate(read):
        groups.setdefault(dialogues.split_key(dialogue), []).append(place)
    allowed = [g for g in groups.values() if all(source in (None, of(read[k])) for k in g)]
    held: set[int] = set()
    for k in shuffled(len(allowed), seed, 5):
        if len(held) + len(allowed[k]) <= n:
            held.update(allowed[k])
    if not held or len(held) == len(read):
        known = ", ".join(sorted({str(of(d)) for d in read}))
        raise ValueError(
            f"--n {n} of --source {source} cannot be split off {len(read):,} dialogues (sources: "
            f"{known}): use another --n or --source"
        )
    return held


def of(dialogue: dict) -> object:
    return dialogue.get("source")
