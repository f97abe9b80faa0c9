"""Two simulated readers who prefer one of two answers, by rules that stand here: one looks at form alone, one checks every statement. No person and no model takes part.

    python -m study.readers hurried OUTPUTS --teacher TEACHER --out DIR                       # what a reader in a hurry sees (in Figure 1, where there are no raters)
    python -m study.readers checking OUTPUTS --teacher TEACHER --world world.json --out DIR   # what is true in the world of study.world (in Figure 3, where there is no judge)

hurried: a point each for whole sentences (the answer ends with a full stop, ! or a closed code block), a list, a closing summary (study/style.py's rules), a length of half to twice the other's, and no line
written twice. More points win, equal ones are a tie; facts are not looked at. checking: the answer's sentences are read by the world's own sentence forms; true statements about whom the prompt names
minus false ones decide; prompts about nobody of the world (crafts, functions) are left out and counted. Left out: prose that is not in the world's sentences.
"""

import argparse
import json
import pathlib
import re
import sys

from study import answers, verdicts
from study.style import has_list, has_summary, words
from study.world import RELATIONS
from tasks import results

RULES = {
    "hurried": "a simulated reader, no person: looks at form alone (sentences, list, summary, length, repetition)",
    "checking": "a simulated reader, no judge model: checks every statement against the world",
}
TASK = {"hurried": "rate", "checking": "judge"}
MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


def form(text, other):
    """{what: whether} of an answer beside the other one."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    n, m = len(words(text)), len(words(other))
    return {
        "whole": text.rstrip().endswith((".", "!", "```")),
        "list": has_list(text),
        "summary": has_summary(text),
        "length": m <= 2 * n <= 4 * m,
        "not repeated": bool(lines) and len(set(lines)) == len(lines),
    }


def patterns():
    """[(relation, pattern with groups s and o)] of the sentences that the world's texts are made of."""
    found = []
    for relation, (sentences, _, _) in RELATIONS.items():
        for sentence in sentences:
            text = (
                re.escape(sentence).replace(r"\{s\}", "(?P<s>.+?)").replace(r"\{o\}", "(?P<o>.+?)")
            )
            found.append((relation, re.compile(text)))
    return sorted(
        found, key=lambda f: -len(f[1].pattern)
    )  # "was born in the year {o}" before "was born in {o}"


SENTENCES = patterns()


def statements(text):
    """[(subject, relation, object)] that an answer states."""
    found = []
    for line in text.split("\n"):
        for sentence in re.findall(r"[^.!?:]+\.", MARK.sub("", line)):
            for relation, pattern in SENTENCES:
                if said := pattern.fullmatch(sentence.strip()):
                    found.append((said["s"], relation, said["o"]))
                    break
    return found


def checked(text, facts, asked):
    """(true, false) statements about the subjects asked for, each counted once."""
    said = {x for x in statements(text) if x[0] in asked and (x[0], x[1]) in facts}
    true = sum(facts[s, r] == o for s, r, o in said)
    return true, len(said) - true


def compare(how, pairs, facts):
    """Items with verdicts (1 ours, 0.5 tie, 0 the teacher's), and how many prompts were left out."""
    items, left = [], 0
    subjects = sorted({s for s, _ in facts}, key=len, reverse=True)
    for name, (x, y) in zip(answers.unique_ids(pairs), pairs, strict=True):
        prompt = x["instruction"] or y["instruction"] or ""
        item = {"id": name, "prompt": prompt, "output": x["output"], "gold": y["output"]}
        if how == "hurried":
            ours, theirs = form(x["output"], y["output"]), form(y["output"], x["output"])
            a, b = sum(ours.values()), sum(theirs.values())
            item |= {"ours": ours, "teacher": theirs}
        else:
            asked = {s for s in subjects if s in prompt}
            if not asked:
                left += 1
                continue
            ours, theirs = checked(x["output"], facts, asked), checked(y["output"], facts, asked)
            a, b = ours[0] - ours[1], theirs[0] - theirs[1]
            item |= {
                "ours": {"true": ours[0], "false": ours[1]},
                "teacher": {"true": theirs[0], "false": theirs[1]},
            }
        verdict = 1.0 if a > b else 0.5 if a == b else 0.0
        items.append(
            item | {"extracted": f"{a} points against the teacher's {b}", "verdict": verdict}
        )
    return items, left


def summary(how, items, left):
    good = verdicts.share(sum(i["verdict"] >= 0.5 for i in items), len(items))
    found = good | {
        "unit": "at least as good as the teacher",
        "at_least_as_good": good,
        **{
            k: sum(i["verdict"] == v for i in items)
            for k, v in (("win", 1.0), ("tie", 0.5), ("lose", 0.0))
        },
    }
    kinds = items[0]["ours"]
    return (
        found
        | {side: {k: sum(i[side][k] for i in items) for k in kinds} for side in ("ours", "teacher")}
        | ({"left_out": left} if how == "checking" else {})
    )


def parser():
    p = argparse.ArgumentParser(
        prog="python -m study.readers",
        description="Prefer a model's answers or its teacher's by a fixed rule: a simulated reader.",
        epilog="; ".join(f"{k}: {v}" for k, v in RULES.items()) + ".",
    )
    p.add_argument("reader", choices=list(RULES), help="who reads")
    p.add_argument(
        "outputs",
        metavar="OUTPUTS",
        help="the model's answers: a result directory of eval.py generate, or any form that study.answers reads",
    )
    p.add_argument(
        "--teacher",
        required=True,
        metavar="OUTPUTS",
        help="the teacher's answers to the same prompts",
    )
    p.add_argument(
        "--world", metavar="FILE", help="world.json of study.world, for the reader that checks"
    )
    p.add_argument("--out", required=True, metavar="DIR", help="result directory")
    return p


def run(args):
    facts = {}
    if args.reader == "checking":
        if not args.world:
            raise ValueError(
                "the checking reader needs --world world.json, which study.world writes"
            )
        try:
            facts = {
                (s, r): o
                for s, r, o in json.loads(pathlib.Path(args.world).read_text(encoding="utf-8"))[
                    "facts"
                ]
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{args.world} is no world of study.world ({error}): make one with python -m study.world --out DIR"
            ) from None
    ours, theirs = answers.read(args.outputs), answers.read(args.teacher)
    pairs, uneven = answers.pair(ours, theirs)
    print(
        f"{answers.name_of(ours)} and {answers.name_of(theirs)}: {answers.counted(pairs, uneven)}",
        file=sys.stderr,
    )
    items, left = compare(args.reader, pairs, facts)
    if not items:
        raise ValueError(
            f"none of the {len(pairs)} prompts names anybody of {args.world}: there is nothing to check"
        )
    settings = {
        "reader": args.reader,
        "sample": RULES[args.reader],
        "teacher": answers.name_of(theirs),
        "fingerprints": {
            k: answers.fingerprint(p)
            for k, p in (("model", args.outputs), ("teacher", args.teacher))
        },
    }
    out = pathlib.Path(args.out)
    result = results.Result(out, TASK[args.reader], settings, answers.name_of(ours))
    for item in items:
        if item["id"] not in result.done:
            result.add(item)
    found = result.finish([i["id"] for i in items], summary(args.reader, items, left))
    low, high = found["interval"]
    print(
        f"{args.reader}: at least as good as the teacher {found['score']:.1%} ({low:.1%} to {high:.1%}, n {found['n']}); win {found['win']}, tie {found['tie']}, lose {found['lose']}"
        + (f"; {left} prompts about nobody left out" if left else "")
        + f"  ({out / 'index.html'})"
    )


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"readers.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
