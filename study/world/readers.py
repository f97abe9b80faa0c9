"""Two simulated readers who prefer one of two answers, by rules that stand here.

    python -m study.world.readers hurried OUTPUTS --teacher TEACHER --out DIR
    python -m study.world.readers checking OUTPUTS --teacher TEACHER --world world.json --out DIR

No person and no model takes part. One looks at form alone (it stands in Figure 1, where there are
no raters), one checks every statement against the world (in Figure 3, where there is no judge).

hurried: a point each for whole sentences (the answer ends with a full stop, ! or a closed code
block), a list, a closing summary (study/style.py's rules), a length of half to twice the other's,
and no line written twice. More points win, equal ones are a tie; facts are not looked at.

checking: the answer's sentences are read by the world's own sentence forms; true statements about
whom the prompt names minus false ones decide; prompts about nobody of the world (crafts, functions)
are left out and counted. Left out: prose that is not in the world's sentences.
"""

import pathlib
import re
import sys

from host import files, terminal
from study import answers
from study.style import has_list, has_summary, words
from study.world.facts import RELATIONS
from tasks import results, scores

RULES = {
    "hurried": "a simulated reader, no person: looks at form alone (sentences, list, summary, "
    "length, repetition)",
    "checking": "a simulated reader, no judge model: checks every statement against the world",
}
TASK = {"hurried": "rate", "checking": "judge"}
MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


def form(text: str, other: str) -> dict:
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


def patterns() -> list:
    """[(relation, pattern with groups s and o)] of the sentences the world's texts are made of."""
    forms = []
    for relation, (sentences, _) in RELATIONS.items():
        for sentence in sentences:
            text = re.escape(sentence)
            text = text.replace(r"\{s\}", "(?P<s>.+?)").replace(r"\{o\}", "(?P<o>.+?)")
            forms.append((relation, re.compile(text)))
    # "was born in the year {o}" before "was born in {o}"
    return sorted(forms, key=lambda form: -len(form[1].pattern))


SENTENCES = patterns()
LONGEST = 300  # characters of a sentence of the world, and more


def statements(text: str) -> list:
    """[(subject, relation, object)] that an answer states."""
    stated = []
    for line in text.split("\n"):
        for sentence in re.findall(r"[^.!?:]+[.!?:]?", MARK.sub("", line)):
            known = sentence.endswith(".") and len(sentence) <= LONGEST
            for relation, pattern in SENTENCES if known else ():
                if said := pattern.fullmatch(sentence.strip()):
                    stated.append((said["s"], relation, said["o"]))
                    break
    return stated


def checked(text: str, facts: dict, named: set[str]) -> tuple:
    """(true, false) statements about the subjects asked for, each counted once."""
    said = {x for x in statements(text) if x[0] in named and (x[0], x[1]) in facts}
    true = sum(facts[s, r] == o for s, r, o in said)
    return true, len(said) - true


def compare(how: str, pairs: list[tuple[answers.Answer, answers.Answer]], facts: dict) -> tuple:
    """Items with verdicts (1 ours, 0.5 tie, 0 the teacher's), and how many prompts are left out."""
    items, left = [], 0
    subjects = sorted({s for s, _ in facts}, key=len, reverse=True)
    for name, (x, y) in zip(answers.unique_ids(pairs), pairs, strict=True):
        prompt = x["instruction"] or y["instruction"] or ""
        item = {"id": name, "prompt": prompt, "output": x["output"], "gold": y["output"]}
        if how == "hurried":
            ours, theirs = form(x["output"], y["output"]), form(y["output"], x["output"])
            a, b = sum(ours.values()), sum(theirs.values())
        else:
            named = {s for s in subjects if s in prompt}
            if not named:
                left += 1
                continue
            sides = [checked(z["output"], facts, named) for z in (x, y)]
            ours, theirs = ({"true": true, "false": false} for true, false in sides)
            a, b = (true - false for true, false in sides)
        item |= {"ours": ours, "teacher": theirs}
        item["extracted"] = f"{a} points against the teacher's {b}"
        item["verdict"] = 0.5 if a == b else float(a > b)
        items.append(item)
    return items, left


def summary(how: str, items: list[dict], left: int) -> dict:
    """The figures of a reader's verdicts."""
    verdicts = [i["verdict"] for i in items]
    good = scores.proportion(sum(v >= 0.5 for v in verdicts), len(items))
    outcomes = (("win", 1.0), ("tie", 0.5), ("lose", 0.0))
    return {
        **good,
        "unit": "at least as good as the teacher",
        "at_least_as_good": good,
        **{name: verdicts.count(value) for name, value in outcomes},
        **{
            side: {k: sum(i[side][k] for i in items) for k in items[0]["ours"]}
            for side in ("ours", "teacher")
        },
        **({"left_out": left} if how == "checking" else {}),
    }


def facts_of(path: str | pathlib.Path) -> dict:
    """{(subject, relation): object} of a world.json."""
    try:
        return {(s, r): o for s, r, o in files.read_json(path)["facts"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no world of study.world ({error}): make one with python -m study.world "
            "--out DIR"
        ) from None


def run(
    reader: str,
    outputs: str | pathlib.Path,
    teacher: str | pathlib.Path,
    world: str | pathlib.Path | None,
    out: str | pathlib.Path,
) -> None:
    """The command: read, compare, write the result directory."""
    if reader == "checking" and not world:
        raise ValueError("the checking reader needs --world world.json, which study.world writes")
    facts = facts_of(world) if reader == "checking" else {}
    ours, theirs = answers.read(outputs), answers.read(teacher)
    pairs, uneven = answers.pair(ours, theirs)
    names = answers.name_of(ours), answers.name_of(theirs)
    terminal.say(f"{names[0]} and {names[1]}: {answers.counted(pairs, uneven)}")
    items, left = compare(reader, pairs, facts)
    if not items:
        raise ValueError(
            f"none of the {len(pairs)} prompts names anybody of {world}: there is nothing to check"
        )
    sources = (("model", outputs), ("teacher", teacher))
    settings = {
        "reader": reader,
        "sample": RULES[reader],
        "teacher": names[1],
        "fingerprints": {k: answers.fingerprint(p) for k, p in sources},
    }
    out = pathlib.Path(out)
    result = results.Result(out, TASK[reader], settings, names[0])
    for item in items:
        if item["id"] not in result.done:
            result.add(item)
    figures = result.finish([i["id"] for i in items], summary(reader, items, left))
    low, high = figures["interval"]
    print(
        f"{reader}: at least as good as the teacher {figures['score']:.1%} ({low:.1%} to "
        f"{high:.1%}, n {figures['n']}); win {figures['win']}, tie {figures['tie']}, lose "
        f"{figures['lose']}"
        + (f"; {left} prompts about nobody left out" if left else "")
        + f"  ({out / 'index.html'})"
    )


def parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.world.readers",
        description="Prefer a model's answers or its teacher's by a fixed rule: a simulated "
        "reader.",
        epilog="; ".join(f"{k}: {v}" for k, v in RULES.items()) + ".",
    )
    p.add_argument("reader", choices=list(RULES), help="who reads")
    p.add_argument(
        "outputs",
        metavar="OUTPUTS",
        help="the model's answers: a result directory of eval.py generate, or any form that "
        "study.answers reads",
    )
    p.add_argument(
        "--teacher", required=True, metavar="OUTPUTS", help="the teacher's, to the same prompts"
    )
    p.add_argument(
        "--world", metavar="FILE", help="world.json of study.world, for the reader that checks"
    )
    p.add_argument("--out", required=True, metavar="DIR", help="result directory")
    return p


def main(argv: list[str] | None = None) -> int:
    def parse_and_run():
        args = parser().parse_args(argv)
        run(args.reader, args.outputs, args.teacher, args.world, args.out)

    return terminal.program(parse_and_run, "study.world.readers")


if __name__ == "__main__":
    sys.exit(main())
