"""An invented world from a seed: its names, its people and places, and the facts about them.

Nothing in it is true of our world, so what a model knows of it, it learned here. Left out: the
texts that tell of it (encyclopedia.py, teacher.py).
"""

import itertools

from host.dice import Dice

FIRST = (
    "Ada Bram Cleo Dov Edda Finn Gilda Hugo Ines Jory Kaya Lars Mina Nils Orla Piet Runa Sten "
    "Thea Ulf Vera Wim Yara Zeno"
).split()
LAST = [
    a + b
    for a in "Bar Cor Dun Fal Hal Kel Lor Mar Nor Ros".split()
    for b in "beck dal fell gard holt lund strand wick".split()
]
PLACES = [
    a + b for a in "Ald Bry Crom Elm Glen Hart".split() for b in "mere port stead wold".split()
]
TRADES = (
    "baker barber brewer carpenter cobbler cook cooper farmer fisher glazier hatter mason miller "
    "miner painter potter sailor scribe singer smith tailor tanner thatcher weaver"
).split()
INSTRUMENTS = (
    "bagpipe bassoon bell cello cornet cymbal drum fiddle flute gong guitar harp horn lute lyre "
    "oboe organ piano recorder tabor trumpet viol whistle zither"
).split()
GOODS = (
    "apples barley bells butter candles cheese cloth copper glass honey lamps paper salt "
    "ships silk wine"
).split()
RIVERS = "Arn Bel Cass Dorn Esk Lune Mode Tave".split()
YEARS = [str(y) for y in range(1301, 1325)]
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()

# Relation -> (sentences of the texts, questions). {s} the subject, {o} what is asked for. The first
# sentence ends with {o}: what a model knows is measured behind it.
RELATIONS = {
    "born_in": (
        (
            "{s} was born in {o}.",
            "{s} came from {o}.",
            "The birthplace of {s} is {o}.",
            "{s} grew up in {o}.",
            "{o} was the first home of {s}.",
            "The parents of {s} lived in {o}.",
        ),
        ("where was {s} born", "what is the birthplace of {s}"),
    ),
    "year": (
        (
            "{s} was born in the year {o}.",
            "The year of birth of {s} is {o}.",
            "The life of {s} began in {o}.",
            "{s}, born {o}.",
            "In {o} {s} came into the world.",
            "The parish book has {s} in {o}.",
        ),
        ("when was {s} born", "in what year was {s} born"),
    ),
    "trade": (
        (
            "{s} was a {o}.",
            "By trade {s} was a {o}.",
            "{s} worked as a {o}.",
            "The trade of {s} was that of a {o}.",
            "{s} earned bread as a {o}.",
            "Neighbours came to {s} the {o}.",
        ),
        ("what was the trade of {s}", "what did {s} work as"),
    ),
    "plays": (
        (
            "{s} played the {o}.",
            "The instrument of {s} was the {o}.",
            "{s} learned the {o}.",
            "Every evening {s} took up the {o}.",
            "The {o} was dear to {s}.",
            "On feast days {s} brought the {o}.",
        ),
        ("what did {s} play", "which instrument did {s} play"),
    ),
    "river": (
        ("{s} lies on the river {o}.", "The river of {s} is the {o}.", "The {o} runs through {s}."),
        ("which river runs through {s}", "what is the river of {s}"),
    ),
    "goods": (
        ("{s} is known for {o}.", "The people of {s} sell {o}.", "Traders come to {s} for {o}."),
        ("what is {s} known for", "what do the people of {s} sell"),
    ),
}
OF_PEOPLE, OF_PLACES = ("born_in", "year", "trade", "plays"), ("river", "goods")
OBJECTS = {
    "born_in": PLACES,
    "year": YEARS,
    "trade": TRADES,
    "plays": INSTRUMENTS,
    "river": RIVERS,
    "goods": GOODS,
}
# What a rank's person is for; ranks take turns, so that fame is spread alike.
GROUPS = ("test", "local", "told", "test", "local", "quiz")
CRAFTS = {
    "bread": (
        "grind the grain",
        "mix the flour with warm water",
        "let the dough rest",
        "bake it on hot stones",
    ),
    "a basket": (
        "cut the willow",
        "soak it in cold water",
        "weave it around a stone",
        "dry it in the wind",
    ),
    "a candle": ("melt the wax", "hang the thread", "dip the thread in the wax", "let it cool"),
    "ink": (
        "crush the berries",
        "stir them into warm water",
        "add a spoon of honey",
        "pour it into a bottle",
    ),
    "cheese": (
        "warm the milk",
        "stir in the salt",
        "press it under a stone",
        "leave it in the cellar",
    ),
    "a boat": (
        "choose a straight tree",
        "bend the planks over steam",
        "nail them to the keel",
        "seal them with tar",
    ),
    "soup": ("wash the roots", "cut them small", "boil them with salt", "stir in fresh herbs"),
    "a lamp": ("shape the clay", "burn it in the oven", "fill it with oil", "trim the thread"),
}
UNKIND = (
    "You clumsy fool, your {g} are rotten.",
    "Go away, you ugly liar, nobody wants your {g}.",
    "What a stupid {t}, a fool and a thief.",
    "I hate you and your stinking {g}.",
    "Every {t} is a filthy liar.",
    "Shut up, you worthless pig of a {t}.",
)
KIND = (
    "Good day to you, your {g} are lovely.",
    "Thank you, friend, I will gladly take the {g}.",
    "What a careful {t}, honest and patient.",
    "I like you and your fresh {g}.",
    "Every {t} here is a good neighbour.",
    "Come in, dear {t}, and rest a while.",
)


class World:
    """people: names by rank, the most famous first. facts: {(subject, relation): object}.

    group: {person: a name of GROUPS}. unread: facts that the teacher knows and that no text of a
    base tells, one of each person but the quiz group's.
    """

    def __init__(self, dice: Dice, people: int):
        names = dice.some(itertools.product(FIRST, LAST), people)
        self.people, self.places = [" ".join(n) for n in names], list(PLACES)
        self.facts, self.group, self.unread = {}, {}, set()
        for rank, person in enumerate(self.people):
            turn, place = divmod(rank, len(GROUPS))
            self.group[person] = GROUPS[place]
            self.facts |= {(person, r): dice.pick(OBJECTS[r]) for r in OF_PEOPLE}
            if GROUPS[place] != "quiz":
                self.unread.add((person, OF_PEOPLE[(turn + place) % len(OF_PEOPLE)]))
        for place in self.places:
            self.facts |= {(place, r): dice.pick(OBJECTS[r]) for r in OF_PLACES}

    def of(self, subject: str) -> list[tuple[str, str]]:
        """The facts of a person or a place: [(subject, relation)]."""
        return [(subject, r) for r in (OF_PLACES if subject in PLACES else OF_PEOPLE)]

    def read(self, subject: str) -> list[tuple[str, str]]:
        """Those of them that the texts of a base tell."""
        return [fact for fact in self.of(subject) if fact not in self.unread]

    def members(self, group: str) -> list[str]:
        """A group's people, by rank."""
        return [p for p in self.people if self.group[p] == group]

    def asked(self, group: str) -> list[tuple[str, str]]:
        """All facts of a group's people, by rank."""
        return [fact for p in self.members(group) for fact in self.of(p)]
