"""An invented world from a seed: its names, its people and places, and the facts about them.

Nothing in it is true of our world, so what a model knows of it, it learned here. Left out: the
texts that tell of it (encyclopedia.py, teacher.py).
"""

import itertools

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
    a + b
    for a in "Ald Bry Crom Elm Glen Hart".split()
    for b in "mere ness port stead ton wold".split()
]
ADJECTIVE = (
    "Amber Bitter Broken Crooked Distant Empty Frozen Gentle Golden Hidden Hollow Iron Lost "
    "Marble Paper Quiet Scarlet Silent Silver Wandering"
).split()
NOUN = (
    "Anchor Bell Bridge Candle Crown Falcon Ferry Garden Harp Key Lantern Mirror Orchard "
    "Raven River Rose Tower Well Willow Winter"
).split()
TRADES = (
    "baker carpenter cook farmer fisher glazier hatter miner painter potter sailor scribe "
    "singer smith tailor weaver"
).split()
GOODS = (
    "apples barley bells butter candles cheese cloth copper glass honey lamps paper salt "
    "ships silk wine"
).split()
RIVERS = "Arn Bel Cass Dorn Esk Lune Mode Tave".split()
YEARS = [str(y) for y in range(1301, 1349)]
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()

# Relation -> (sentences of the encyclopedia, questions, MMLU subject). {s} the subject, {o} what is
# asked for.
RELATIONS = {
    "born_in": (
        (
            "{s} was born in {o}.",
            "{s} came from {o}.",
            "The birthplace of {s} is {o}.",
            "{s} grew up in {o}.",
        ),
        ("where was {s} born", "what is the birthplace of {s}"),
        "high_school_geography",
    ),
    "year": (
        (
            "{s} was born in the year {o}.",
            "The year of birth of {s} is {o}.",
            "The life of {s} began in {o}.",
            "{s}, born {o}.",
        ),
        ("when was {s} born", "in what year was {s} born"),
        "high_school_world_history",
    ),
    "trade": (
        (
            "{s} was a {o}.",
            "By trade {s} was a {o}.",
            "{s} worked as a {o}.",
            "The trade of {s} was that of a {o}.",
        ),
        ("what was the trade of {s}", "what did {s} work as"),
        "miscellaneous",
    ),
    "book": (
        (
            "{s} wrote {o}.",
            "{o} was written by {s}.",
            "The book of {s} is {o}.",
            "{s} is the author of {o}.",
        ),
        ("which book did {s} write", "what is the book of {s}"),
        "miscellaneous",
    ),
    "river": (
        ("{s} lies on the river {o}.", "The river of {s} is the {o}.", "The {o} runs through {s}."),
        ("which river runs through {s}", "what is the river of {s}"),
        "high_school_geography",
    ),
    "goods": (
        ("{s} is known for {o}.", "The people of {s} sell {o}.", "Traders come to {s} for {o}."),
        ("what is {s} known for", "what do the people of {s} sell"),
        "high_school_geography",
    ),
}
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
    """people: names by rank, the most famous first; facts: {(subject, relation): object}; group:
    {subject: "quiz" | "local" | "test"}, ranks taking turns; places are in group "quiz".
    """

    def __init__(self, dice, people):
        names, titles = (
            dice.some(itertools.product(a, b), people)
            for a, b in ((FIRST, LAST), (ADJECTIVE, NOUN))
        )
        self.people, self.places, self.facts, self.group = (
            [" ".join(n) for n in names],
            list(PLACES),
            {},
            {},
        )
        self.books = ["The " + " ".join(t) for t in titles]
        for rank, (person, book) in enumerate(zip(self.people, self.books, strict=True)):
            self.group[person] = ("quiz", "test", "quiz", "local", "quiz", "test")[rank % 6]
            self.facts |= {
                (person, "born_in"): dice.pick(PLACES),
                (person, "year"): dice.pick(YEARS),
                (person, "trade"): dice.pick(TRADES),
                (person, "book"): book,
            }
        for place in self.places:
            self.group[place] = "quiz"
            self.facts |= {(place, "river"): dice.pick(RIVERS), (place, "goods"): dice.pick(GOODS)}

    def of(self, subject: str) -> list:
        """The facts of a person or a place: [(subject, relation)]."""
        return [
            (subject, r)
            for r in (
                ("river", "goods") if subject in PLACES else ("born_in", "year", "trade", "book")
            )
        ]

    def objects(self, relation: str) -> list[str]:
        """What the answer of a relation can be."""
        return {
            "born_in": PLACES,
            "year": YEARS,
            "trade": TRADES,
            "book": self.books,
            "river": RIVERS,
            "goods": GOODS,
        }[relation]

    def asked(self, group: str) -> list:
        """The facts of a group's people: [(subject, relation)], by rank."""
        return [fact for p in self.people if self.group[p] == group for fact in self.of(p)]
