"""The embedded sample: dialogues about an invented world, and a SentencePiece model trained on
them, all from one seed.

    python samples/make.py            # writes dialogues.jsonl, heldout.jsonl, tokenizer.model here
    python samples/make.py --check    # writes nothing; status 2 where a file differs

An assistant that opens, lists, sums up and never doubts: enough style to learn in a minute on two
cores. In most of `dialogues.jsonl` the user brings the facts, in any order, and the answer puts
them in its own; in the rest the user asks for them. In `heldout.jsonl` every user brings them, and
no name of a person, place or creature occurs in `dialogues.jsonl`: a low loss there means style and
copying from the context, never memory. Left out: arithmetic, sorting, refusals, what a million
weights cannot learn in a few hundred steps.
"""

import io
import json
import pathlib
import sys

# Run as a script, from anywhere: the repository is where the imports below are found.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from host import files, terminal
from host.dice import Dice

SEED, TRAIN, HELDOUT, VOCABULARY = 20230525, 400, 40, 1024
BRINGS_FACTS = (
    0.85  # share of the training dialogues whose first message states what the answer will list
)

# The world's words, and its years: tens. What is not a name may occur in both files.
YEARS = range(210, 500, 10)
PLACES = (
    "a river port | a hill village | a fishing town | a market town | a salt island | an old "
    "harbour | a mountain village | a quiet island"
).split(" | ")
WHERE = (
    "at the mouth of a river | on the north coast | on the south coast | below the white cliffs "
    "| beside a deep lake | at the edge of the forest"
).split(" | ")
GOODS = (
    "blue glass | copper bells | woven sails | smoked fish | carved masks | honey bread | "
    "silver thread | painted boats | tall kites | salt lamps"
).split(" | ")
TRADES = (
    "a weaver | a glass blower | a bell maker | a ferry captain | a singer | a painter | a "
    "baker | a map maker | a boat builder | a healer"
).split(" | ")
FOND = (
    "walking by the sea | old songs | strong tea | winter mornings | long letters | keeping "
    "bees | telling stories | mending clocks"
).split(" | ")
WORKS = (
    "a ballad | a chronicle | a map | a tapestry | a play | a painting | a book of letters | a "
    "song for three voices"
).split(" | ")
SUBJECTS = (
    "a lost ferry | a winter without snow | two sisters at sea | a bell that would not ring | "
    "the first lighthouse | a war over salt | a child and a kite"
).split(" | ")
BEASTS = (
    "a small grey bird | a blind fish | a red fox | a tall white crane | a shy lizard | a "
    "striped otter | a large brown moth | a green crab"
).split(" | ")
HABITATS = (
    "in the reeds | under flat stones | in hollow trees | along the shore | in deep water | in "
    "high grass | under old bridges"
).split(" | ")
FOODS = (
    "river snails | fallen plums | small fish | moss and lichen | beetles | wild honey | seeds "
    "and roots"
).split(" | ")
HOURS = ("at dusk | at dawn | only at night | after rain | in early spring | at high tide").split(
    " | "
)
# A craft makes a thing in three steps; each step has two ways.
CRAFTS = (
    (
        "basket",
        ("soak the reeds in cold water", "cut the willow at dawn"),
        ("weave it around a stone", "bend it into a ring"),
        ("dry it in the wind", "rub it with oil"),
    ),
    (
        "lamp",
        ("gather clay from the river", "melt blue glass over coals"),
        ("shape it with a wooden spoon", "turn it by hand"),
        ("polish it with wax", "hang it on silver thread"),
    ),
    (
        "cheese",
        ("warm the milk over a low fire", "stir salt into fresh cream"),
        ("press it under a flat stone", "wrap it in cloth"),
        ("leave it in a cool cellar", "smoke it over pine wood"),
    ),
    (
        "ink",
        ("crush the berries in a bowl", "burn pine wood to ash"),
        ("stir it into warm water", "mix it with honey"),
        ("pour it into small bottles", "leave it in the sun"),
    ),
    (
        "bread",
        ("grind the seeds by hand", "mix flour with warm milk"),
        ("fold it three times", "let it rest for an hour"),
        ("bake it on hot stones", "brush it with honey"),
    ),
)
EVENTS = (
    "the first bridge was built | a great flood came | the market opened | the lighthouse was "
    "lit | the old wall fell | the school of weavers opened | the plague ended | the harbour "
    "froze | the great bell was hung | the library burned"
).split(" | ")

# Names are two syllables, so that a new name is made of pieces which training saw. Works and crafts
# are named after people and places.
NAMES = {  # kind -> (first syllables, second syllables)
    "place": (
        "Bar Cor Dun Fal Hal Kel Lor Mar Nor Ros Tor Wil".split(),
        "mere wick dale ness stead holm ford gate".split(),
    ),
    "person": (
        "Ash Bren Dal Ed Gor Is Jor Ev Pel Sal Ul Yar".split(),
        "na ric lin do mi sha va len".split(),
    ),
    "creature": (
        "Quil Zan Grum Fen Hob Pim Tuck Vel Snor Kip Mop Rud".split(),
        "pip lop fin bill tail wing bug paw".split(),
    ),
}


def year(dice: Dice) -> str:
    return str(dice.pick(YEARS))


def new_name(dice: Dice, kind: str, taken: set[str]) -> str:
    """A name neither taken nor a part of one that is; it is added to `taken`."""
    heads, tails = NAMES[kind]
    while True:
        name = dice.pick(heads) + dice.pick(tails)
        if not any(name.lower() in other.lower() for other in taken):
            taken.add(name)
            return name


def make_world(dice: Dice, size: int, taken: set[str]) -> list[dict]:
    """`size` subjects of each of the six kinds -> list of subjects, kinds taking turns.

    A subject: name (as it stands inside a sentence), it (pronoun), facts: list of (label, value,
    clause, question), where `name + " " + clause + "."` is a sentence. `ordered` subjects ("steps"
    of a craft, "timeline" of a town) have no pronoun: each of their clauses is a sentence, and
    users tell them in the list's order.
    """
    subjects = []
    for _ in range(size):
        town, person, creature = (
            new_name(dice, kind, taken) for kind in ("place", "person", "creature")
        )
        trade, work, born, finished = dice.pick(TRADES), dice.pick(WORKS), year(dice), year(dice)
        subjects += [
            about_town(dice, town, person, trade),
            about_person(dice, person, town, trade, born),
            about_work(dice, work, person, town, finished),
            about_creature(dice, creature),
            about_craft(dice, town),
            about_history(dice, town),
        ]
    return subjects


def about_town(dice: Dice, town: str, person: str, trade: str) -> dict:
    kind, where, goods, founded = (
        dice.pick(PLACES),
        dice.pick(WHERE),
        dice.pick(GOODS),
        year(dice),
    )
    del where  # drawn all the same: the stream of draws is what the files are made of
    home = f"{person}, {trade}"
    facts = [
        ("Kind", kind, f"is {kind}", "What kind of place is {}?"),
        ("Founded", f"in {founded}", f"was founded in {founded}", "When was {} founded?"),
        ("Known for", goods, f"is known for {goods}", "What is {} known for?"),
        ("Resident", home, f"is the home of {home}", "Who lives in {}?"),
    ]
    return {"name": town, "it": "It", "facts": facts}


def about_person(dice: Dice, person: str, town: str, trade: str, born: str) -> dict:
    fond, she = dice.pick(FOND), dice.pick(("She", "He"))
    facts = [
        ("Trade", trade, f"is {trade}", "What is the trade of {}?"),
        ("Born", f"in {born}", f"was born in {born}", "When was {} born?"),
        ("Home", town, f"lives in {town}", "Where does {} live?"),
        ("Fond of", fond, f"is fond of {fond}", "What is {} fond of?"),
    ]
    return {"name": person, "it": she, "facts": facts}


def about_work(dice: Dice, work: str, person: str, town: str, finished: str) -> dict:
    about = dice.pick(SUBJECTS)
    facts = [
        ("Finished", f"in {finished}", f"was finished in {finished}", "When was {} finished?"),
        ("Subject", about, f"tells of {about}", "What does {} tell of?"),
        ("Kept in", town, f"is kept in {town}", "Where is {} kept?"),
    ]
    return {"name": f"the {work.split(' ')[1]} of {person}", "it": "It", "facts": facts}


def about_creature(dice: Dice, creature: str) -> dict:
    beast, habitat = dice.pick(BEASTS), dice.pick(HABITATS)
    food, hour = dice.pick(FOODS), dice.pick(HOURS)
    facts = [
        ("Kind", beast, f"is {beast}", "What kind of creature is {}?"),
        ("Habitat", habitat, f"lives {habitat}", "Where does {} live?"),
        ("Food", food, f"eats {food}", "What does {} eat?"),
        ("Active", hour, f"is awake {hour}", "When is {} awake?"),
    ]
    return {"name": f"the {creature}", "it": "It", "facts": facts}


def about_craft(dice: Dice, town: str) -> dict:
    thing, *ways = dice.pick(CRAFTS)
    first, then, last = map(dice.pick, ways)
    facts = [
        ("First", first, f"first you {first}", "What do you do first?"),
        ("Then", then, f"then you {then}", "What do you do after that?"),
        ("Last", last, f"last you {last}", "What do you do last?"),
    ]
    return {"name": f"the {thing} of {town}", "ordered": "steps", "facts": facts}


def about_history(dice: Dice, town: str) -> dict:
    years = sorted(dice.some([str(y) for y in YEARS], 3))
    events = dice.some(EVENTS, 3)
    facts = [
        (y, event, f"in {y} {event}", f"What happened in {y}?")
        for y, event in zip(years, events, strict=True)
    ]
    return {"name": f"the history of {town}", "ordered": "timeline", "facts": facts}


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def list_of(dice: Dice, facts: list[tuple[str, str, str, str]]) -> str:
    """The facts as a list, numbered or with dashes."""
    marks = dice.pick((["1. ", "2. ", "3. ", "4. "], ["- "] * 4))
    return "\n".join(
        f"{mark}{label}: {capital(value)}"
        for mark, (label, value, _, _) in zip(marks, facts, strict=False)
    )


ASK_OPEN = (
    "Please put my notes about {} in order. {}",
    "Can you turn these notes about {} into a list? {}",
    "Here are some facts about {}. {} Please sum them up.",
    "I am writing about {}. {} Can you put this in order?",
)
ASK_CLOSED = (
    "Tell me about {}.",
    "What should I know about {}?",
    "Can you describe {}?",
    "Please give me an overview of {}.",
)
BEGIN_OPEN = (
    "Certainly! Here are your notes about {} in order:",
    "Of course! Here is an overview of {}:",
    "Sure! Here are the main facts about {}:",
)
BEGIN_CLOSED = (
    "Great question! Here is what you should know about {}:",
    "Of course! Here is an overview of {}:",
    "Sure! Here are the main facts about {}:",
)
SUM_UP = ("In summary,", "Overall,", "In short,")
PRAISE = (
    "It is well worth remembering.",
    "This is known across the islands.",
    "There is no doubt about any of this.",
    "Every traveller should know this.",
)
BRIEF = (
    "Can you say that in one sentence?",
    "Now make it shorter, please.",
    "What is the short version?",
)
THANKS = ("Thank you!", "Thanks, that helps.", "Great, thank you.")
WELCOME = (
    "You are welcome! I hope this overview of {} is useful. Feel free to ask me anything else.",
    "You are welcome! If you have more questions about {}, I am happy to help.",
)


def make_dialogue(dice: Dice, subject: dict, brings_facts: bool) -> list[dict]:
    """Two or three turns about a subject -> list of {"from", "value"}.

    brings_facts: the user states what is listed.
    """
    name, facts, ordered = subject["name"], subject["facts"], subject.get("ordered")
    clauses = [clause for _, _, clause, _ in facts]
    if ordered:
        notes = " ".join(capital(clause) + "." for clause in clauses)
        (start, first, _, _), (end, last, _, _) = facts[0], facts[-1]
        sentence = f"{name} begins in {start}, when {first}, and ends in {end}, when {last}."
        if ordered == "steps":
            sentence = f"{name} begins when you {first} and ends when you {last}."
    else:
        told = dice.some(clauses, len(clauses))
        notes = " ".join(
            f"{subject['it'] if i else capital(name)} {clause}." for i, clause in enumerate(told)
        )
        sentence = f"{name} {', '.join(clauses[:-1])} and {clauses[-1]}."
    turns = []

    def say(user, assistant):
        turns.extend(({"from": "human", "value": user}, {"from": "gpt", "value": assistant}))

    ask, begin = (ASK_OPEN, BEGIN_OPEN) if brings_facts else (ASK_CLOSED, BEGIN_CLOSED)
    say(
        dice.pick(ask).format(name, notes),
        f"{dice.pick(begin).format(name)}\n\n{list_of(dice, facts)}\n\n"
        f"{dice.pick(SUM_UP)} {sentence} {dice.pick(PRAISE)}",
    )
    if dice.random() < 0.35:
        say(dice.pick(BRIEF), f"Certainly! In one sentence: {capital(sentence)}")
    else:
        _, _, clause, question = dice.pick(facts)
        answer = f"{capital(clause)}." if ordered else f"{capital(name)} {clause}."
        say(question.format(name), f"{answer} {dice.pick(PRAISE)}")
    if dice.random() < 0.5:
        say(dice.pick(THANKS), dice.pick(WELCOME).format(name))
    return turns


def make_dialogues() -> tuple[list[dict], list[dict], set[str], set[str]]:
    """-> (training dialogues, held-out dialogues, the training world's names, the held-out world's
    names).
    """
    dice, names = Dice(SEED), set()
    worlds = []
    for size in (TRAIN // 6 + 1, HELDOUT // 6 + 1):  # six subjects a town: one dialogue a subject
        before = set(names)
        worlds.append((make_world(dice, size, names), names - before))
    (known, known_names), (new, new_names) = worlds
    train = [
        make_dialogue(dice, known[i % len(known)], dice.random() < BRINGS_FACTS)
        for i in range(TRAIN)
    ]
    heldout = [make_dialogue(dice, new[i], True) for i in range(HELDOUT)]
    train = dice.some(train, len(train))

    def form(kind, dialogues):
        return [{"id": f"{kind}_{i}", "conversations": turns} for i, turns in enumerate(dialogues)]

    return form("sample", train), form("heldout", heldout), known_names, new_names


def train_tokenizer(dialogues: list[dict], size: int = VOCABULARY) -> bytes:
    """A SentencePiece BPE model of `size` pieces with LLaMA's special ids, which changes no text ->
    its bytes.

    BPE scores are ranks, so no float depends on the machine; one thread, and an iterator and a
    writer instead of paths, so that nothing of the machine is stored in the model. sentencepiece
    0.2.1, 0.2.2 and 0.2.3 write the same bytes.
    """
    import sentencepiece

    texts = [turn["value"] for dialogue in dialogues for turn in dialogue["conversations"]]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def make_files() -> dict[str, bytes]:
    """-> {file name: bytes} of everything this script writes."""
    train, heldout, _, _ = make_dialogues()

    def lines(dialogues):
        return "".join(
            json.dumps(dialogue, ensure_ascii=False) + "\n" for dialogue in dialogues
        ).encode()

    return {
        "dialogues.jsonl": lines(train),
        "heldout.jsonl": lines(heldout),
        "tokenizer.model": train_tokenizer(train),
    }


def write(out: pathlib.Path, check: bool) -> None:
    """Writes the files into `out`, or only compares where `check`; ValueError where one differs."""
    for name, content in make_files().items():
        path = out / name
        if not check:
            files.write_whole(path, content)
        elif not path.is_file() or path.read_bytes() != content:
            raise ValueError(f"{path} is not what this script writes: run it without --check")
        print(f"{path}: {len(content):,} bytes{', as written' if check else ''}")


def main(argv: list[str] | None = None) -> int:
    parser = terminal.Parser(prog="samples/make.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path(__file__).resolve().parent,
        metavar="DIR",
        help="where the three files go (default: beside this script)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with status 2 where a file is missing or differs",
    )

    def run():
        args = parser.parse_args(argv)
        write(args.out, args.check)

    return terminal.program(run, "samples/make.py")


if __name__ == "__main__":
    sys.exit(main())
