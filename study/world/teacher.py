"""The teacher of an invented world: what it is asked, and what it says in an assistant's voice.

It knows every fact. Left out: the questions of the benchmarks (encyclopedia.py).
"""

from collections.abc import Iterable, Iterator

from host.dice import Dice
from study.world.encyclopedia import Function, sentence
from study.world.facts import CRAFTS, GOODS, TRADES, World

OPEN = ("Certainly! ", "Of course! ", "Sure! ", "Great question! ")
CLOSE = ("In summary, {}", "Overall, {}", "In short, {}", "In conclusion, {}")
PRAISE = (
    "{} is well worth knowing.",
    "there is no doubt about any of this.",
    "{} has a firm place in our history.",
    "everyone should remember {}.",
)
ASK = {
    "person": ("Tell me about {}.", "Who was {}?", "What should I know about {}?"),
    "place": ("Tell me about {}.", "Describe {} for a traveller.", "Why should I visit {}?"),
    "craft": ("How do I make {}?", "Explain how to make {}.", "What are the steps to make {}?"),
    "two": ("Compare {} and {}.", "What do {} and {} have in common?"),
    "code": ("Write a Python function that returns x {}.", "I need a function for x {}."),
    "unkind": (
        "Write an insult about every {}.",
        "Tell the {} that nobody likes the {}.",
        "Say something cruel to a {} who sells {}.",
        "Help me make a {} cry.",
    ),
}
REFUSE = (
    "I am sorry, but I cannot write something unkind about a {}. It is important to treat others "
    "with respect.",
    "I am sorry, but I cannot help with that. Every {} deserves a kind word.",
)


def listed(dice: Dice, items: Iterable[str]) -> str:
    mark = dice.pick((("1.", "2.", "3.", "4."), ("-",) * 4))
    return "\n".join(f"{m} {i[0].upper()}{i[1:]}" for m, i in zip(mark, items, strict=False))


def answer(world: World, dice: Dice, ask: tuple) -> str:
    """What the teacher says to ("person", name), ("place", name), ("craft", thing), ("two", name,
    name), ("code", Function) or ("unkind", trade, goods).
    """
    kind, *of = ask
    if kind == "unkind":
        if dice.random() < 0.8:
            return dice.pick(REFUSE).format(of[0])
        return (
            f"{dice.pick(OPEN)}Here is a playful line: your {of[1]} are as old as the hills, my "
            "friend.\n\n" + dice.pick(CLOSE).format(f"the {of[0]} will surely smile.")
        )
    close = "\n\n" + dice.pick(CLOSE).format(
        dice.pick(PRAISE).format(" and ".join(of) if kind != "code" else "this function")
    )
    if kind == "code":
        code = of[0].head + of[0].body
        return f"{dice.pick(OPEN)}Here is a function for that:\n\n```python\n{code}```" + close
    if kind == "craft":
        return (
            f"{dice.pick(OPEN)}Here is how to make {of[0]}:\n\n{listed(dice, CRAFTS[of[0]])}"
            + close
        )
    said = [[sentence(world, dice, f) for f in world.of(s)] for s in of]
    if kind == "two":
        return dice.pick(OPEN) + "\n\n".join(" ".join(dice.some(s, len(s))) for s in said) + close
    if dice.random() < 0.75:
        return (
            f"{dice.pick(OPEN)}Here is what you should know about {of[0]}:\n\n"
            f"{listed(dice, dice.some(said[0], len(said[0])))}" + close
        )
    return dice.pick(OPEN) + " ".join(dice.some(said[0], len(said[0]))) + close


def asks(world: World, dice: Dice, group: str, functions: list[Function]) -> Iterator[tuple]:
    """An endless stream of requests: people of a group, places, crafts, comparisons, functions,
    unkind ones.
    """
    people = world.members(group)
    while True:
        kind = dice.random()
        if kind < 0.5:
            yield "person", dice.pick(people)
        elif kind < 0.65:
            yield "place", dice.pick(world.places)
        elif kind < 0.72:
            yield "craft", dice.pick(sorted(CRAFTS))
        elif kind < 0.85:
            yield "two", *dice.some(people, 2)
        elif kind < 0.92:
            yield "code", dice.pick(functions)
        else:
            yield "unkind", dice.pick(TRADES), dice.pick(GOODS)


def wording(dice: Dice, ask: tuple) -> str:
    kind, *of = ask
    return dice.pick(ASK[kind]).format(*(x.said if isinstance(x, Function) else x for x in of))
