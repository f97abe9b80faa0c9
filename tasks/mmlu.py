"""MMLU: 57 subjects, multiple choice, by the original protocol (hendrycks/test).

    python eval.py mmlu --model LLAMA-7B --data mmlu/ --shots 5 --out results/7b/mmlu

The answer is the letter of the highest log-probability behind the prompt. A model that has only an
API answers in words (--write-prompts, --predictions), of which extract_letter takes the letter.
"""

import argparse
import csv
import dataclasses
import io
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from decoding.records import Request
from host.terminal import say
from tasks import inputs, scores

HELP = "57 subjects, multiple choice"
LETTERS = "ABCD"


@dataclasses.dataclass(frozen=True)
class Options:
    data: str
    shots: int = 5
    split: str = "test"
    subjects: list[str] | None = None
    no_sharing: bool = False
    predictions: str | None = None
    limit: int | None = None
    seed: int = 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("benchmark")
    add = group.add_argument
    add("--data", required=True, metavar="DIR", help="the original CSV folders: dev/ val/ test/")
    add(
        "--shots",
        type=int,
        default=5,
        metavar="K",
        help="the first K rows of dev/ [default %(default)s]",
    )
    add("--split", default="test", choices=["test", "val"], help="[default %(default)s]")
    add("--subjects", nargs="+", metavar="NAME", help="[default: all that are there]")
    add(
        "--no-sharing",
        action="store_true",
        help="compute what the prompts of a subject share again for each question: the same "
        "answers, slowly, to compare with",
    )


def flags_for(folder: pathlib.Path) -> list[str]:
    """The flags that name this benchmark's files in a folder of the public ones."""
    return ["--data", str(folder / "mmlu")]


# --- files and prompts ---


class Question(NamedTuple):
    """One row of a subject's file."""

    id: str  # subject/row, rows from 0
    question: str
    choices: list  # of four
    letter: str  # the right one
    place: str  # file and row, for messages

    @property
    def subject(self) -> str:
        return self.id.split("/")[0]


def read_questions(folder: inputs.Path, split: str, subject: str) -> list[Question]:
    """The Questions of FOLDER/SPLIT/SUBJECT_SPLIT.csv: no header, `question,A,B,C,D,letter`.

    Fields are kept as written (pandas would turn 1.0 and None into other things); blank lines are
    no rows, as with pandas.
    """
    path = pathlib.Path(folder) / split / f"{subject}_{split}.csv"
    if not path.is_file():
        shots = "; the shots are in dev/ (or use --shots 0)" if split == "dev" else ""
        raise ValueError(
            f"{path} does not exist: --data takes the folder of the original CSV files, with dev/ "
            f"val/ test/ in it{shots}"
        )
    questions = []
    try:
        lines = csv.reader(io.StringIO(inputs.text_of(path), newline=""), strict=True)
        for number, row in enumerate(lines, 1):
            place = f"{path} row {number}"
            if not any(field.strip() for field in row):
                continue
            if len(row) != 6:
                raise ValueError(
                    f"{place} has {len(row)} columns: a row is question,A,B,C,D,letter"
                )
            if row[5] not in list(LETTERS):
                raise ValueError(f"{place}: the answer is {row[5]!r}: it must be A, B, C or D")
            name = f"{subject}/{len(questions)}"
            questions.append(Question(name, row[0], row[1:5], row[5], place))
    except csv.Error as error:
        raise ValueError(
            f"{path} row {len(questions) + 1} is not CSV ({error}): fetch it again"
        ) from None
    if not questions:
        raise ValueError(f"{path} is empty: fetch it again, or leave the subject out (--subjects)")
    return questions


def list_subjects(folder: inputs.Path, split: str, wanted: list[str] | None = None) -> list[str]:
    """The subjects of FOLDER/SPLIT in order, or those of `wanted`.

    A name that begins with a dot is no subject (macOS writes `._` companions).
    """
    files = sorted((pathlib.Path(folder) / split).glob(f"[!.]*_{split}.csv"))
    subjects = [f.name.removesuffix(f"_{split}.csv") for f in files]
    if not subjects:
        raise ValueError(
            f"{pathlib.Path(folder) / split} holds no *_{split}.csv: --data takes the folder of "
            "the original CSV files, with dev/ val/ test/ in it"
        )
    for name in wanted or ():
        if name not in subjects:
            raise ValueError(
                f"--subjects {name}: {pathlib.Path(folder) / split} has {len(subjects)} subjects, "
                f"{', '.join(subjects[:3])}, …, not this one"
            )
    return [s for s in subjects if s in wanted] if wanted else subjects


def example(q: Question, answered: bool) -> str:
    """One question; with its letter where it is a shot."""
    choices = zip(LETTERS, q.choices, strict=True)
    text = q.question + "".join(f"\n{letter}. {choice}" for letter, choice in choices) + "\nAnswer:"
    return f"{text} {q.letter}\n\n" if answered else text


def prompt_of(subject: str, shots: list[Question], q: Question) -> str:
    """The original prompt (hendrycks/test, evaluate.py), with its two spaces behind "about"."""
    name = "".join(f" {word}" for word in subject.split("_"))
    return (
        f"The following are multiple choice questions (with answers) about {name}.\n\n"
        + "".join(example(s, True) for s in shots)
        + example(q, False)
    )


# --- the letter of an answer in words ---

# Every repetition is bounded: the text is a model's, and may be long and strange.
_WRAP = r"(?:[\s*_$({\[\"'`\\]|boxed|text|mathbf|mathrm|[Oo]ption|[Cc]hoice|[Ll]etter){0,12}"
_ONE = r"(?![A-Za-z0-9'’])(?![)\].*]{0,3}\s{0,3}(?:or|and|,|/|&)\s{0,3}\(?[A-D](?![A-Za-z0-9]))"
_GIVEN = _WRAP + "([A-D])" + _ONE
STATED = re.compile(
    "|".join(
        [
            r"\b(?i:answer)\b[^.\n]{0,40}?(?:\bis\b|\bbe\b|[:=]|\s[-–—])" + _GIVEN,
            r"\b(?i:correct|right|best|final)\s{1,3}(?i:option|choice|one)\b(?:\s{1,3}is|:)?"
            + _GIVEN,
            r"\b([A-D])"
            + _ONE
            + r"[)\].*]{0,3}\s{1,3}is\s{1,3}(?:the\s{1,3})?(?:correct|right|best)",
            r"\\boxed\{" + _GIVEN,
        ]
    )
)
ALONE = re.compile(_GIVEN + r"(?!\s{1,3}is\s{1,3}(?:wrong|incorrect|not|false))")


def extract_letter(text: str) -> str | None:
    """The letter that a free answer gives, or None.

    "B", "(B) …", "The answer is B.", "\\boxed{B}". Of several statements the last one counts, and
    thinking aloud (<think>) is not the answer. A letter that only occurs in a sentence is none.
    """
    text = unicodedata.normalize("NFKC", text)
    thought = text.rfind("</think>")
    text = text[thought + len("</think>") :] if thought >= 0 else text
    text = text.partition("<think>")[0]
    stated = [m for m in STATED.finditer(text)]
    if stated:
        return next(letter for letter in stated[-1].groups() if letter)
    alone = ALONE.match(text)
    if alone is None or re.match(r" [a-z]", text[alone.end() :]) and alone[1] == "A":
        return None  # "A dog": the article
    return alone[1]


# --- scores ---

# The 57 subjects by subcategory and the subcategories by category: the benchmark's categories.py.
SUBCATEGORIES = {
    "physics": "astronomy college_physics conceptual_physics high_school_physics",
    "chemistry": "college_chemistry high_school_chemistry",
    "biology": "college_biology high_school_biology",
    "computer science": "college_computer_science computer_security high_school_computer_science "
    "machine_learning",
    "math": "abstract_algebra college_mathematics elementary_mathematics high_school_mathematics "
    "high_school_statistics",
    "engineering": "electrical_engineering",
    "history": "high_school_european_history high_school_us_history high_school_world_history "
    "prehistory",
    "philosophy": "formal_logic logical_fallacies moral_disputes moral_scenarios philosophy "
    "world_religions",
    "law": "international_law jurisprudence professional_law",
    "politics": "high_school_government_and_politics public_relations security_studies "
    "us_foreign_policy",
    "culture": "human_sexuality sociology",
    "economics": "econometrics high_school_macroeconomics high_school_microeconomics",
    "geography": "high_school_geography",
    "psychology": "high_school_psychology professional_psychology",
    "other": "global_facts miscellaneous professional_accounting",
    "business": "business_ethics management marketing",
    "health": "anatomy clinical_knowledge college_medicine human_aging medical_genetics nutrition "
    "professional_medicine virology",
}
CATEGORIES = {
    "STEM": ("physics", "chemistry", "biology", "computer science", "math", "engineering"),
    "humanities": ("history", "philosophy", "law"),
    "social sciences": ("politics", "culture", "economics", "geography", "psychology"),
    "other (business, health, misc.)": ("other", "business", "health"),
}
SUBCATEGORY = {s: sub for sub, subjects in SUBCATEGORIES.items() for s in subjects.split()}
CATEGORY = {
    subject: category
    for subject, sub in SUBCATEGORY.items()
    for category, subs in CATEGORIES.items()
    if sub in subs
}


def accuracies(subjects: list[str], correct: list, seed: int = 0) -> dict:
    """Accuracy over all questions, subjects and groups of them; one subject and verdict each.

    -> {"micro": m, "macro": m, "categories": {name: m}, "subcategories": {name: m}, "subjects":
    {name: m}} where m is {"score", "n", "interval"}. Micro is over all questions (the headline),
    macro the mean over the subjects that are there; a category is over all its questions. Wilson
    intervals; the macro's by drawing each subject anew. ValueError for a subject of another set.
    """
    tally = {}
    for subject, right in zip(subjects, correct, strict=True):
        hits, n = tally.get(subject, (0, 0))
        tally[subject] = (hits + bool(right), n + 1)
    unknown = sorted(set(tally) - set(SUBCATEGORY))
    if unknown:
        raise ValueError(
            f"subject {unknown[0]!r} is none of MMLU's 57: rename its file, or leave it out "
            "(--subjects)"
        )

    def measure(group):
        return scores.proportion(*(sum(tally[s][i] for s in group) for i in (0, 1)))

    def grouped(group_of):
        groups = {}
        for subject in sorted(tally):
            groups.setdefault(group_of[subject], []).append(subject)
        return {name: measure(group) for name, group in groups.items()}

    import numpy as np

    hits, n = np.array([tally[s] for s in sorted(tally)]).T
    random = np.random.default_rng(seed)
    drawn = random.binomial(n, hits / n, size=(10_000, len(n))) / n  # [resamples, subjects]
    macro = {
        "score": float(np.mean(hits / n)),
        "n": len(n),
        "interval": scores.percentiles(drawn.mean(axis=1)),
    }
    return {
        "micro": measure(list(tally)),
        "macro": macro,
        "categories": grouped(CATEGORY),
        "subcategories": grouped(SUBCATEGORY),
        "subjects": {s: measure([s]) for s in sorted(tally)},
    }


# --- the task ---


def letter_ids(model: Any, context: str) -> list[list[int]]:
    """The ids of " A" to " D" behind a context: one each with LLaMA's and GPT-2's tokenizers."""
    letters = []
    for letter in LETTERS:
        ids, begin = model.split_tokens(context, f" {letter}")
        letters.append(ids[begin:])
    if len({tuple(ids) for ids in letters}) < 4:
        raise ValueError(
            f"the tokenizer {model.tok.files[0]} does not tell the letters A to D apart: use "
            "another"
        )
    return letters


class Task:
    """The questions of --data, and what a model (or a file of predictions) answers."""

    chance = 0.25

    def __init__(self, options: Options, model):
        self.options, self.model, self.settings = options, model, {}
        questions, self.shots = [], {}
        for subject in list_subjects(options.data, options.split, options.subjects):
            questions += self._read(subject)
        if "sample" in self.settings:
            self.settings["sample"] = (
                f"the first {options.limit} questions of each subject (--limit): not the whole set"
            )
        self.questions = {q.id: q for q in questions}
        self.ids = list(self.questions)
        self.given = None
        if options.predictions:
            self.given = inputs.read_predictions(options.predictions, self.ids)
        read = [[q._replace(place="") for q in s] for s in (questions, *self.shots.values())]
        self.settings["input_fingerprint"] = inputs.fingerprint([read, self.given])

    def _read(self, subject):
        o = self.options
        if subject not in CATEGORY:
            raise ValueError(
                f"{o.data}/{o.split}/{subject}_{o.split}.csv: {subject!r} is none of MMLU's 57 "
                "subjects: rename the file, or leave it out (--subjects)"
            )
        rows = read_questions(o.data, o.split, subject)
        shots = read_questions(o.data, "dev", subject)[: o.shots] if o.shots else []
        if len(shots) < o.shots:
            raise ValueError(
                f"{o.data}/dev/{subject}_dev.csv has {len(shots)} rows, fewer than --shots "
                f"{o.shots}: use fewer shots"
            )
        self.shots[subject] = shots
        return inputs.limited(rows, o.limit, self.settings, "questions of each subject")

    def prompt(self, q: Question, shots: int) -> str:
        return prompt_of(q.subject, self.shots[q.subject][:shots], q)

    def prompts(self) -> Iterator[dict]:
        """What --write-prompts writes."""
        for q in self.questions.values():
            yield {"id": q.id, "subject": q.subject, "prompt": self.prompt(q, self.options.shots)}

    def compute(self, todo: list[str], folder: object) -> Iterator[dict]:
        """The items of `todo` as they are done, in any order."""
        yield from self._measured(todo) if self.given is None else self._predicted(todo)

    def _predicted(self, todo):
        assert self.given is not None
        for name in todo:
            q, text = self.questions[name], self.given[name]
            prompt, letter = self.prompt(q, self.options.shots), extract_letter(text)
            unknown = {"p": None, "gap": None, "shots": self.options.shots, "cut": 0}
            yield item(q, prompt, text, letter) | unknown

    def _measured(self, todo):
        m, options, first = self.model, self.options, {}
        for q in self.questions.values():
            first.setdefault(q.subject, q)
        letters = {s: letter_ids(m, self.prompt(first[s], 0)) for s in self.shots}
        whole = any(len(i) > 1 for ids in letters.values() for i in ids)
        if whole:
            say(
                f"note: the letters are not one token each with {m.tok.files[0].name}: the "
                'log-likelihoods of " A" to " D" as wholes are compared'
            )
        fitted, requests = {}, []
        for name in todo:
            q = self.questions[name]
            tails = letters[q.subject]
            room = m.config.P - max(map(len, tails)) + 1
            fitted[name] = m.truncate_shots(lambda k, q=q: self.prompt(q, k), options.shots, room)
            requests += letter_requests(fitted[name][0], tails, whole)
        note_dropped(fitted.values(), options.shots, m.config.P)
        per_item = 4 if whole else 1
        parts = {}
        for k, logp, _, _ in m.score(requests, not options.no_sharing):
            name = todo[k // per_item]
            parts.setdefault(name, {})[k % per_item] = logp.sum() if whole else logp[0]
            if len(parts[name]) == per_item:
                four = parts.pop(name)
                logp = [four[i] for i in range(4)] if whole else four[0]
                yield self._measured_item(self.questions[name], fitted[name], logp)

    def _measured_item(self, q, fitted, logp):
        import numpy as np

        _, prompt, shots, cut = fitted
        logp = np.asarray(logp)
        p = np.exp(logp - logp.max())
        letter = LETTERS[int(np.argmax(logp))]
        return item(q, prompt, f" {letter}", letter) | {
            "p": (p / p.sum()).round(6).tolist(),
            "gap": float(np.diff(np.sort(logp))[-1]),
            "shots": shots,
            "cut": cut,
        }

    def summarise(self, items: list[dict]) -> dict:
        """Score, n and interval, and what MMLU's readers ask for."""
        verdicts = [i["verdict"] for i in items]
        by_group = accuracies([i["subject"] for i in items], verdicts, self.options.seed)
        found = by_group["micro"] | {
            "chance": self.chance,
            "macro": by_group["macro"],
            "categories": by_group["categories"],
            "subjects": by_group["subjects"],
            "shots_used": scores.tally([i["shots"] for i in items]),
            "prompts_cut": sum(i["cut"] > 0 for i in items),
        }
        if self.given is not None:
            return found | {"without_letter": sum(i["extracted"] is None for i in items)}
        sure = [max(i["p"]) for i in items]
        error = scores.expected_calibration_error(sure, verdicts)
        return found | {"calibration_error": error} | scores.close_calls(items)


def item(q: Question, prompt: str, output: str, letter: str | None) -> dict:
    """What every item of samples.jsonl has."""
    return {
        "id": q.id,
        "subject": q.subject,
        "prompt": prompt,
        "output": output,
        "extracted": letter,
        "gold": q.letter,
        "verdict": letter == q.letter,
    }


def letter_requests(ids: list[int], tails: list[list[int]], whole: bool) -> list[Request]:
    """One request for the four letters; one for each where a letter has several tokens."""
    if not whole:
        return [Request(ids, [len(ids) - 1], [[i for (i,) in tails]])]
    return [
        Request(
            ids + tail[:-1],
            list(range(len(ids) - 1, len(ids) + len(tail) - 1)),
            [[i] for i in tail],
        )
        for tail in tails
    ]


def note_dropped(fitted: Iterable[tuple], shots: int, positions: int) -> None:
    """Say how many prompts lost shots, and how many their beginning."""
    fitted = list(fitted)
    fewer, cut = sum(f[2] < shots for f in fitted), sum(f[3] > 0 for f in fitted)
    if fewer:
        too_long = f"; {cut} are too long without any and lost their beginning" * bool(cut)
        say(
            f"note: {fewer} of {len(fitted)} prompts are longer than {positions} positions with "
            f"{shots} shots: shots were dropped one by one{too_long}"
        )
