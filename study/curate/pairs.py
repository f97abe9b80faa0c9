"""Local imitation from a benchmark's own training questions, in NQ-synthetic's form.

    python -m study.curate pairs NQ-open.train.jsonl --prompts NQ-open.dev.jsonl --n 4000 --out DIR

A pair is a dialogue of one question and its first answer, drawn by the seed. The answers are
people's: a perfect teacher, where the paper had ChatGPT (study.synthesize). A question whose BLEU
against an evaluation prompt is above the threshold is dropped. The threshold is higher than the
mix's: questions of one benchmark resemble one another in form, and 20 % drops half of them. Writes
DIR/pairs.jsonl.gz and report.json.
"""

import os
import pathlib

from host import files
from study import rows
from study.curate import decontaminate
from study.synthesize.pairs import normalised
from tasks import nq
from text.rows import shuffled


def parse(row: object, name: str) -> list[tuple[str, str]]:
    """A parse for rows.each: [(question, first answer)] of a row of NQ-open."""
    value = rows.parse_object(row)
    wrong = nq.wrong_row(value)
    if wrong:
        raise ValueError(wrong)
    question, answer = (" ".join(text.split()) for text in (value["question"], value["answer"][0]))
    return [(question, answer)] if question and answer else []


def run(
    paths: list[str],
    prompt_paths: list[str],
    n: int,
    threshold: float,
    seed: int,
    out: str | pathlib.Path,
    max_bad: float,
    threads: int | None,
) -> None:
    """The command."""
    out, read = pathlib.Path(out), list(rows.each(paths, parse, max_bad))
    once = {normalised(question): (question, answer) for question, answer in reversed(read)}
    different = list(once.values())
    prompts = decontaminate.prompts_of(prompt_paths, max_bad)
    workers = threads or os.cpu_count() or 1
    near = decontaminate.nearest((question for question, _ in different), prompts, workers)
    kept = [pair for pair in different if near[pair[0]].score <= threshold]
    if not kept:
        raise ValueError(
            f"none of {len(different):,} questions is left: raise --threshold {threshold:g}"
        )
    chosen = [kept[k] for k in shuffled(len(kept), seed, 6)][:n]
    written = [rows.dialogue(f"pair-{k}", q, a, "nq") for k, (q, a) in enumerate(chosen, 1)]
    report = {
        "read": len(read),
        "different": len(different),
        "near": len(different) - len(kept),
        "pairs": len(chosen),
        "threshold": threshold,
        "seed": seed,
        "prompts": len(prompts),
    }
    with rows.locked(out):
        with rows.gzip_whole(out / "pairs.jsonl.gz") as stream:
            stream.writelines(map(rows.json_line, written))
        files.write_whole(out / "report.json", files.dumps(report, indent=1) + "\n")
    print(
        f"pairs: {len(chosen):,} of {len(read):,} rows; {len(read) - len(different):,} asked "
        f"before, {len(different) - len(kept):,} near an evaluation prompt"
    )
    print(f"{out / 'pairs.jsonl.gz'}")
