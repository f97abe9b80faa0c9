"""What a model knows, whatever it says: the likeliest of a kind's objects behind a plain sentence.

    python eval.py loglik --model M --input WORLD/knows.read.jsonl --out LIKELIHOODS
    python -m study.world.knows LIKELIHOODS --input WORLD/knows.read.jsonl --out DIR

The rows of a fact are the same sentence with each object of its kind. A fact is known where the
right one is the likeliest (rank 1). Left out: other wordings than the first of a relation.
"""

import itertools
import pathlib
import statistics
import sys

from host import terminal
from study import answers
from tasks import inputs, results, scores


def wrong_row(row: dict) -> str | None:
    """What is wrong with a row of the candidates, or None."""
    right = isinstance(row.get("right"), bool) and isinstance(row.get("fact"), int)
    if right and all(isinstance(row.get(key), str) for key in ("prefix", "text")):
        return None
    return 'a row is {"prefix", "text", "fact", "right"}, as study.world writes them'


def ranked(candidates: list[dict], likelihoods: list[float]) -> list[dict]:
    """The items of all facts: each with the rank of its right object, ties counted against it."""
    items = []
    pairs = zip(candidates, likelihoods, strict=True)
    for fact, group in itertools.groupby(pairs, key=lambda pair: pair[0]["fact"]):
        objects = list(group)
        right = [(row["text"], value) for row, value in objects if row["right"]]
        if len(right) != 1:
            raise ValueError(f"fact {fact} has {len(right)} right objects: it needs one")
        gold, likelihood = right[0]
        rank = sum(value >= likelihood for _, value in objects)
        best = max(objects, key=lambda pair: pair[1])[0]
        items.append(
            {
                "id": str(fact),
                "prompt": best["prefix"],
                "extracted": best["text"].strip(" ."),
                "gold": gold.strip(" ."),
                "rank": rank,
                "of": len(objects),
                "verdict": rank == 1,
            }
        )
    return items


def run(likelihoods: str, candidates: str, out: str) -> None:
    """The command: read, rank, write the result directory."""
    given = results.read_result(likelihoods)
    if given.get("task") != "loglik" or not given.get("finished"):
        raise ValueError(f"{likelihoods} is no finished result of eval.py loglik: make it first")
    read = [row for _, row in inputs.json_rows(candidates, wrong_row)]
    by_row = results.read_items(pathlib.Path(likelihoods) / "samples.jsonl")
    if len(by_row) != len(read):
        raise ValueError(
            f"{likelihoods} has {len(by_row)} likelihoods, {candidates} {len(read)} rows: name the "
            "file that was scored"
        )
    items = ranked(read, [by_row[str(k)]["loglik"] for k in range(len(read))])
    settings = {
        "input_fingerprint": answers.fingerprint(candidates),
        "likelihoods": answers.fingerprint(likelihoods),
    }
    result = results.Result(out, "knows", settings, given.get("model"))
    for item in items:
        if item["id"] not in result.done:
            result.add(item)
    ranks = [float(i["rank"]) for i in items]
    summary = scores.share([i["verdict"] for i in items]) | {
        "unit": "the right object is the likeliest",
        "chance": statistics.fmean(1 / i["of"] for i in items),
        "mean_rank": {"score": statistics.fmean(ranks), "interval": scores.bootstrap(ranks)},
    }
    figures = result.finish([i["id"] for i in items], summary)
    low, high = figures["interval"]
    print(
        f"knows: {figures['score']:.1%} ({low:.1%} to {high:.1%}, n {figures['n']}), mean rank "
        f"{figures['mean_rank']['score']:.1f}  ({pathlib.Path(out) / 'index.html'})"
    )


def parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.world.knows",
        description="The rank of the right object among all of its kind, by likelihood.",
    )
    p.add_argument("likelihoods", metavar="RESULT", help="result directory of eval.py loglik")
    p.add_argument(
        "--input", required=True, metavar="FILE", help="the rows scored: knows.SET.jsonl of a world"
    )
    p.add_argument("--out", required=True, metavar="DIR", help="result directory")
    return p


def main(argv: list[str] | None = None) -> int:
    def parse_and_run():
        args = parser().parse_args(argv)
        run(args.likelihoods, args.input, args.out)

    return terminal.program(parse_and_run, "study.world.knows")


if __name__ == "__main__":
    sys.exit(main())
