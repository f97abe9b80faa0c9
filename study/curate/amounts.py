"""Nested amounts of imitation data: subsets of one mix by one seed, each a prefix of the next.

    python -m study.curate amounts DIR/mix.jsonl.gz --tokenizer T --tokens 0.3M 1M 20M --out DIR

Writes DIR/0.3M.jsonl.gz, ... (the shortest prefix of one shuffle that reaches the amount, tokens as
the roles template has them) and amounts.json, and prints what each contains by source. The smaller
file's text is the beginning of the larger one's. An amount that the mix does not hold is named in
one line and not written. Left out: packing (data.py pack).
"""

import collections
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import data
from host import files, terminal, workers
from study import rows
from study.curate import SMALL, sheet
from text import tokenizer
from text.rows import shuffled

CHUNK = 256  # dialogues that a worker counts at once
COUNTED = ("dialogues", "turns", "tokens", "loss_tokens")


def name_of(tokens: int) -> str:
    """300000 -> "0.3M"."""
    return f"{tokens / 1e6:.6f}".rstrip("0").rstrip(".") + "M"


def subsets(
    path: str | pathlib.Path,
    tok_path: str | pathlib.Path,
    amounts: Iterable[str | int],
    seed: int,
    out: str | pathlib.Path,
    processes: int | None = None,
) -> dict:
    """Writes the subsets; returns what amounts.json holds."""
    if processes is not None and processes < 1:
        raise ValueError(f"--workers {processes}: at least 1 process has to count")
    wanted = sorted({terminal.count(a) for a in amounts})
    tok, out = tokenizer.load(tok_path), pathlib.Path(out)
    encoded = [
        json.dumps(d, ensure_ascii=False).encode("utf-8", "surrogatepass")
        for d in sheet.read_mix(path)
    ]
    if not encoded:
        raise ValueError(f"{path} holds no dialogue: make the mix again")
    order = [encoded[i] for i in shuffled(len(encoded), seed, 4)]
    processes = processes or (os.cpu_count() if sum(map(len, encoded)) >= SMALL else 1)
    cuts, entries, tokens = _count_up_to(wanted, order, tok_path, processes)
    missing = wanted[len(entries) :]
    for amount in missing:
        terminal.say(
            f"study.curate: {name_of(amount)} is more than the mix holds ({tokens:,} tokens): "
            "not written"
        )
    if not entries:
        raise ValueError(
            f"{path} holds {tokens:,} tokens, fewer than every amount of --tokens: name smaller "
            "ones, or a larger mix"
        )
    summary = {
        "seed": seed,
        "tokenizer": tok.fingerprint,
        "mix_dialogues": len(encoded),
        "amounts": entries,
        "not_held": [name_of(a) for a in missing],
    }
    with rows.locked(out):
        for amount, n in zip(wanted, cuts, strict=False):
            with rows.gzip_whole(out / f"{name_of(amount)}.jsonl.gz") as stream:
                for row in order[:n]:
                    stream.write(_line(row))
        files.write_whole(out / "amounts.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _count_up_to(wanted, order, tok_path, processes):
    """(dialogues of each amount reached, its entry of amounts.json, tokens counted)."""
    progress = terminal.Progress("counting", wanted[-1], "tokens")
    total, cuts, entries, tokens = collections.defaultdict(collections.Counter), [], [], 0
    chunks = (order[k : k + CHUNK] for k in range(0, len(order), CHUNK))
    counted = workers.ordered(_count, chunks, processes, _start, (str(tok_path),))
    for number, (source, turns, count, loss) in enumerate((x for part in counted for x in part), 1):
        total[source].update(dialogues=1, turns=turns, tokens=count, loss_tokens=loss)
        tokens += count
        while len(entries) < len(wanted) and tokens >= wanted[len(entries)]:
            entries.append(_entry(wanted[len(entries)], total))
            cuts.append(number)
        progress(tokens)
        if len(entries) == len(wanted):
            break
    counted.close()
    progress.close()
    return cuts, entries, tokens


def _entry(amount, total):
    sources = {s: dict(c) for s, c in sorted(total.items())}
    return {
        "amount": name_of(amount),
        "file": f"{name_of(amount)}.jsonl.gz",
        "sources": sources,
        "all": {k: sum(c[k] for c in sources.values()) for k in COUNTED},
    }


def _line(row):
    """A row as it stands in a subset; one with half a surrogate pair is encoded anew."""
    try:
        row.decode()
        return row + b"\n"
    except UnicodeDecodeError:
        return rows.json_line(json.loads(row.decode("utf-8", "surrogatepass")))


def lines(entries: dict) -> Iterator[str]:
    """The table of what each amount contains, by source."""
    yield (
        f"{'amount':<8}{'source':<12}{'dialogues':>10}{'turns':>10}{'tokens':>14}"
        f"{'loss tokens':>14}"
    )
    for m in entries["amounts"]:
        for source, c in [*m["sources"].items(), ("all", m["all"])]:
            yield (
                f"{m['amount']:<8}{source:<12}{c['dialogues']:>10,}{c['turns']:>10,}"
                f"{c['tokens']:>14,}{c['loss_tokens']:>14,}"
            )


def _start(tok_path):
    global _tokenizer
    _tokenizer = tokenizer.load(tok_path)


def _count(chunk):
    """[(source, turns, tokens, loss tokens)] of encoded dialogues."""
    counted = []
    for row in chunk:
        d = json.loads(row.decode("utf-8", "surrogatepass"))
        ids, mask = data.tokenize_dialogue(d, _tokenizer)
        source = str(d.get("source", "unknown"))
        counted.append((source, len(d["conversations"]), len(ids), int(mask.sum())))
    return counted
