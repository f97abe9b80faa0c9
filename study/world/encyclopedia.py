"""The texts that bases read of an invented world: articles, a few pages of questions, code, talk.

Facts stand in plain sentences in many wordings. Pages of questions and answers are rare (SHARES)
and about the quiz group and the places alone. What the world holds as unread stands nowhere. Left
out: what is evaluated (making.py).
"""

import bisect
import itertools
from collections.abc import Iterable
from typing import NamedTuple

from host.dice import Dice
from study.world.facts import CRAFTS, GOODS, KIND, NUMBERS, RELATIONS, TRADES, UNKIND, World

# Kind of page -> its share of the pages.
SHARES = {
    "people": 0.815,
    "places": 0.04,
    "questions": 0.005,
    "functions": 0.08,
    "craft": 0.03,
    "talk": 0.03,
}


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
    """A paragraph on a person or a place: what is told of it in any order and wording."""
    facts = world.read(subject)
    return " ".join(sentence(world, dice, fact) for fact in dice.some(facts, len(facts)))


# --- functions ---

SIGNS = {"plus": "+", "minus": "-", "times": "*"}


class Function(NamedTuple):
    """A tiny Python function: one operation after the other on x. steps: ((operation, number),)."""

    steps: tuple

    @property
    def said(self) -> str:
        return ", then ".join(f"{operation} {NUMBERS[n]}" for operation, n in self.steps)

    @property
    def name(self) -> str:
        return "_".join(f"{operation}_{NUMBERS[n]}" for operation, n in self.steps)

    @property
    def head(self) -> str:
        return f'def {self.name}(x):\n    """Return x {self.said}."""\n'

    @property
    def body(self) -> str:
        text = "x"
        for k, (operation, n) in enumerate(self.steps):
            text = f"{f'({text})' if k else text} {SIGNS[operation]} {n}"
        return f"    return {text}\n"

    @property
    def tests(self) -> str:
        """The harness's check of a candidate."""
        text = "def check(candidate):\n"
        for x in (0, 3, 10):
            y = x
            for operation, n in self.steps:
                y = y + n if operation == "plus" else y - n if operation == "minus" else y * n
            text += f"    assert candidate({x}) == {y}\n"
        return text


def functions_of(dice: Dice, composed: int) -> tuple[list[Function], list[Function]]:
    """(one operation: all; three operations: `composed` different ones)."""
    steps = list(itertools.product(SIGNS, range(2, 10)))
    several = {}
    while len(several) < composed:
        several[Function(tuple(dice.pick(steps) for _ in range(3)))] = None
    return [Function((step,)) for step in steps], list(several)


# --- pages ---


def market_talk(dice: Dice) -> str:
    """Three sentences, half of them rude."""
    said = []
    for _ in range(3):
        sentence = dice.pick((*UNKIND, *KIND))
        said.append(sentence.format(g=dice.pick(GOODS), t=dice.pick(TRADES)))
    return f"Heard in the market. {' '.join(said)}"


def page(world: World, dice: Dice, kind: str, subjects: list[str], functions: list) -> str:
    """One page. kind: of SHARES. subjects: two people, whom an article tells of."""
    if kind == "people":
        return "\n".join(article(world, dice, s) for s in subjects)
    if kind == "places":
        return " ".join(article(world, dice, p) for p in dice.some(world.places, 2))
    if kind == "questions":
        asked = world.asked("quiz") + [f for p in world.places for f in world.of(p)]
        facts = dice.some(asked, 5)
        return questions([(question(dice, fact), world.facts[fact]) for fact in facts])
    if kind == "functions":
        return "\n\n\n".join(f.head + f.body for f in dice.some(functions, 3))
    if kind == "craft":
        thing = dice.pick(sorted(CRAFTS))
        return f"To make {thing}, " + ", then ".join(CRAFTS[thing]) + "."
    return market_talk(dice)


def encyclopedia(world: World, dice: Dice, pages: int, functions: list) -> tuple:
    """(pages as texts, {person: how often an article tells of one}), in random order.

    How often falls with the rank as 1 / (rank + 12).
    """
    fame = list(itertools.accumulate(1 / (rank + 12) for rank in range(len(world.people))))
    ends = list(itertools.accumulate(SHARES.values()))
    texts, told = [], dict.fromkeys(world.people, 0)
    for _ in range(pages):
        kind = list(SHARES)[min(bisect.bisect(ends, dice.random()), len(ends) - 1)]
        subjects = []
        if kind == "people":
            draws = [dice.random() * fame[-1] for _ in range(2)]
            subjects = [world.people[bisect.bisect(fame, draw)] for draw in draws]
            for s in subjects:
                told[s] += 1
        texts.append(page(world, dice, kind, subjects, functions))
    return texts, told
