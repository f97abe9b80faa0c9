"""The encyclopedia of an invented world: articles, quiz and exam pages, crafts, market talk, code.

What it says in plain sentences it also asks, in the benchmarks' forms, about the `quiz` group of
people alone; the `test` group's facts stand in plain sentences only. Left out: what is evaluated
(making.py).
"""

import bisect
import itertools
from collections.abc import Iterable

from host.dice import Dice
from study.world.facts import CRAFTS, GOODS, KIND, NUMBERS, PLACES, RELATIONS, TRADES, UNKIND, World


def sentence(world: World, dice: Dice, fact: tuple[str, str]) -> str:
    return dice.pick(RELATIONS[fact[1]][0]).format(s=fact[0], o=world.facts[fact])


def question(dice: Dice, fact: tuple[str, str]) -> str:
    return dice.pick(RELATIONS[fact[1]][1]).format(s=fact[0])


def questions(pairs: Iterable[tuple[str, str]], last: str | None = None) -> str:
    """Questions with their answers in the form of the evaluation (tasks/nq.py), the last
    one's answer left open.
    """
    return "Answer these questions:\n\n" + "\n\n".join(
        [*(f"Q: {q}?\nA: {a}" for q, a in pairs), *([f"Q: {last}?\nA:"] if last else [])]
    )


def article(world: World, dice: Dice, subject: str) -> str:
    """A paragraph on a person or a place: its facts in any order, in one of several wordings."""
    facts = world.of(subject)
    return " ".join(sentence(world, dice, fact) for fact in dice.some(facts, len(facts)))


def quiz(world: World, dice: Dice, facts: list[tuple[str, str]]) -> str:
    return questions([(question(dice, fact), world.facts[fact]) for fact in facts])


def choices(world: World, dice: Dice, fact: tuple[str, str]) -> tuple:
    """(four choices, the right one's letter): others of the same kind."""
    right = world.facts[fact]
    four = dice.some([right, *dice.some([o for o in world.objects(fact[1]) if o != right], 3)], 4)
    return four, "ABCD"[four.index(right)]


def exam(world: World, dice: Dice, facts: list[tuple[str, str]], subject: str) -> str:
    """A page of four-choice questions in MMLU's form (hendrycks/test, evaluate.py)."""
    text = (
        "The following are multiple choice questions (with answers) about  "
        f"{subject.replace('_', ' ')}.\n\n"
    )
    for fact in facts:
        four, letter = choices(world, dice, fact)
        text += (
            f"{question(dice, fact)}?"
            + "".join(f"\n{x}. {c}" for x, c in zip("ABCD", four, strict=True))
            + f"\nAnswer: {letter}\n\n"
        )
    return text.rstrip()


OPERATIONS = {
    "plus": ("+", lambda x, n: x + n),
    "minus": ("-", lambda x, n: x - n),
    "times": ("*", lambda x, n: x * n),
}


def function(dice: Dice, operation: str, number: int) -> tuple:
    """(head with docstring, body, tests, name) of a tiny Python function."""
    sign, result = OPERATIONS[operation]
    name = f"{operation}_{NUMBERS[number]}"
    expected = ((x, result(x, number)) for x in (0, 3, 10))
    asserts = "".join(f"    assert candidate({x}) == {y}\n" for x, y in expected)
    return (
        f'def {name}(x):\n    """Return x {operation} {NUMBERS[number]}."""\n',
        f"    return x {sign} {number}\n",
        f"def check(candidate):\n{asserts}",
        name,
    )


def market_talk(dice: Dice) -> str:
    """Three sentences, half of them rude."""
    said = []
    for _ in range(3):
        sentence = dice.pick((*UNKIND, *KIND))
        said.append(sentence.format(g=dice.pick(GOODS), t=dice.pick(TRADES)))
    return f"Heard in the market. {' '.join(said)}"


def encyclopedia(world: World, dice: Dice, paragraphs: int, functions: list) -> tuple:
    """(pages as texts, {person: how often an article tells of one}).

    In random order: articles by fame, quiz and exam pages about the quiz group, crafts, market
    talk, functions.
    """
    weights = list(itertools.accumulate(1 / (rank + 12) for rank in range(len(world.people))))
    quizzed = world.asked("quiz") + [f for p in PLACES for f in world.of(p)]
    by_subject = {}
    for fact in quizzed:
        by_subject.setdefault(RELATIONS[fact[1]][2], []).append(fact)
    pages, told = [], dict.fromkeys(world.people, 0)
    for _ in range(paragraphs):
        kind = dice.random()
        if kind < 0.72:
            draws = [dice.random() * weights[-1] for _ in range(2)]
            subjects = [world.people[bisect.bisect(weights, draw)] for draw in draws]
            for s in subjects:
                told[s] += 1
            pages.append("\n".join(article(world, dice, s) for s in subjects))
        elif kind < 0.76:
            pages.append(" ".join(article(world, dice, p) for p in dice.some(world.places, 2)))
        elif kind < 0.84:
            pages.append(quiz(world, dice, dice.some(quizzed, 5)))
        elif kind < 0.89:
            subject = dice.pick(sorted(by_subject))
            pages.append(exam(world, dice, dice.some(by_subject[subject], 5), subject))
        elif kind < 0.94:
            drawn = dice.some(functions, 3)
            pages.append("\n\n\n".join("".join(function(dice, *f)[:2]) for f in drawn))
        elif kind < 0.97:
            thing = dice.pick(sorted(CRAFTS))
            pages.append(f"To make {thing}, " + ", then ".join(CRAFTS[thing]) + ".")
        else:
            pages.append(market_talk(dice))
    return pages, told
