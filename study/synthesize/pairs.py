"""NQ-synthetic: from ten seed pairs to a training set of questions and short answers.

    python -m study.synthesize --teacher http://localhost:8000/v1 --teacher-model NAME --n 6000 \\
        --out out/nq-synthetic

Request k is a function of (--seed, k): five of the seed pairs in random order. Pairs are taken in
the order of the requests until there are --n. Left out: whether an answer is true; prices (tokens
are counted).
"""

import collections
import math
import pathlib
import random
import re

from host import terminal
from study import access, rows
from tasks import scores

# Table 3 of the paper, as written there.
SEEDS = [
    ("who sang who wants to be a millionare in high society?", "Frank Sinatra"),
    ("the last time la dodgers won the world series?", "1988"),
    ("who plays the medical examiner on hawaii five-o?", "Masi Oka"),
    ("when did the first harry potter movie come out?", "2001"),
    ("when was the last time india won a gold medal in hockey at olympics", "1980"),
    ("who owns the rights to baby shark song", "SmartStudy"),
    ("how many episodes are in one punch man season 1", "12"),
    ("name of the bird in the lion king", "Zazu"),
    ("who sang the rap song change clothes", "Jay-Z"),
    ("who stars as serena in gossip girl", "Blake Lively"),
]
# After Table 4 (its wording was not checked against the appendix itself); the five pairs follow.
TEMPLATE = (
    "I want you to generate a series of questions and answers. I want the answers to be concise, "
    "just a few words. The questions should be lowercased and centered around Wikipedia-like "
    "entities. For example,"
)
SHOTS = 5
PROBE = 8  # requests before it is known how many pairs come from one
BARREN = 50  # answers in a row without a new pair, after which there is no point in going on
# At the beginning of a stripped line. Possessive, so that its time is linear: a teacher's answer
# may hold anything.
MARK = re.compile(
    r"(?:[-*•>#]++\s++|\(?\d++[.):]\s*+)?[*_]{0,3}(q|question|a|answer)(?:\s*+#?\d++)?"
    r"[*_]{0,3}\s*+[:.)]",
    re.I,
)
COUNTS = (
    "requests",
    "answered",
    "failed",
    "answers_without_a_pair",
    "parsed",
    "malformed",
    "duplicates",
    "copies_of_a_seed",
    "excluded",
    "surplus",
    "kept",
    "kept_with_a_question_asked_before",
    "prompt_tokens",
    "completion_tokens",
)


def read_seeds(path: str | pathlib.Path | None) -> list[tuple[str, str]]:
    """[(question, answer)] of JSON lines {"question", "answer": str or [str]}; None: the ten."""

    def pair(row, name):
        row = rows.parse_object(row)
        question, answer = row.get("question"), row.get("answer")
        answer = answer[0] if isinstance(answer, list) and answer else answer
        if not all(isinstance(x, str) and x.strip() for x in (question, answer)):
            raise ValueError('a seed is {"question": "…", "answer": "…"}')
        return [(" ".join(question.split()), " ".join(answer.split()))]

    pairs = SEEDS if path is None else list(rows.each([path], pair, 0))
    if len(pairs) < SHOTS:
        raise ValueError(
            f"--seeds {path} holds {len(pairs)} pairs: {SHOTS} or more are needed, each request "
            f"shows {SHOTS}"
        )
    return pairs


def prompt(seeds: list[tuple[str, str]], seed: int, k: int) -> str:
    """The text of request k."""
    shots = random.Random(f"{seed} {k}").sample(seeds, SHOTS)
    return "\n\n".join([TEMPLATE, *(f"Q: {q}\nA: {a}" for q, a in shots)])


class Reader:
    """The pairs of one answer, line by line: "Q: …", "A: …", and what goes on below a mark."""

    def __init__(self):
        self.pairs, self.malformed = [], 0
        self.question = self.reply = self.current = None

    def close(self) -> None:
        """End the open pair; one without a question or an answer is malformed."""
        if self.question and self.reply:
            self.pairs.append((self.question, self.reply))
        elif self.is_open():
            self.malformed += 1
        self.question = self.reply = None

    def is_open(self) -> bool:
        return self.question is not None or self.reply is not None

    def add(self, line: str) -> None:
        line = line.strip()
        marked, plain = MARK.match(line), " ".join(line.split())
        if marked:
            text = " ".join(line[marked.end() :].strip().strip("*_ ").split())
            self.current = marked[1][0].lower()
            if self.current == "q" or self.reply is not None:
                self.close()
            if self.current == "q":
                self.question = text
            else:
                self.reply = text
        elif not plain:
            self.current = None  # what comes after a blank line without a mark is chatter
        elif self.current == "q":
            self.question = f"{self.question} {plain}".strip()
        elif self.current == "a":
            self.reply = f"{self.reply} {plain}".strip()


def parse(text: str, cut_off: bool = False) -> tuple:
    """An answer -> ([(question, answer)], malformed).

    Lines are "Q: …" and "A: …", also numbered, in bold, or written out; a line without a mark goes
    on the text above it. malformed: questions without an answer, answers without a question, empty
    ones. cut_off: the answer ended at the teacher's limit, so that its last pair is not whole.
    """
    reader = Reader()
    for line in text.splitlines():
        for part in re.split(r"(?<=\S)\s+(?=\**A:\s)", line):
            reader.add(part)
    if cut_off and reader.is_open():
        return reader.pairs, reader.malformed + 1
    reader.close()
    return reader.pairs, reader.malformed


def normalised(text: str) -> str:
    """How texts are told apart: as Natural Questions does, or else in lower case."""
    return scores.normalise(text) or " ".join(text.lower().split())


class Collection:
    """The pairs kept so far, and the counts of the others."""

    def __init__(self, n: int, seeds, excluded):
        self.n = n
        self.seeds = {normalised(q) for q, _ in seeds}
        self.excluded = {normalised(q) for q in excluded}
        self.pairs, self.seen, self.questions, self.barren = [], set(), set(), 0
        self.counts = collections.Counter(dict.fromkeys(COUNTS, 0))

    def add(self, answer: dict) -> None:
        """The pairs of one answer."""
        c, before = self.counts, len(self.pairs)
        c["requests"] += 1
        if answer["error"] is not None:
            c["failed"] += 1
            return
        c["answered"] += 1
        c["prompt_tokens"] += answer["prompt_tokens"]
        c["completion_tokens"] += answer["completion_tokens"]
        pairs, malformed = parse(answer["text"] or "", answer["finish"] == "length")
        c["malformed"] += malformed
        c["parsed"] += len(pairs)
        c["answers_without_a_pair"] += not pairs
        for question, reply in pairs:
            c[self._place(question, reply)] += 1
        self.barren = 0 if len(self.pairs) > before else self.barren + 1

    def _place(self, question, reply):
        """Keep a pair, or not -> the count it belongs to."""
        plain = normalised(question)
        pair = (plain, normalised(reply))
        if pair in self.seen:
            return "duplicates"
        if plain in self.seeds:
            return "copies_of_a_seed"
        if plain in self.excluded:
            return "excluded"
        if len(self.pairs) == self.n:
            return "surplus"
        self.pairs.append((question, reply))
        self.counts["kept_with_a_question_asked_before"] += plain in self.questions
        self.seen.add(pair)
        self.questions.add(plain)
        return "kept"

    def next_round(self) -> int:
        """How many requests to make now, so that few are made in vain.

        A probe first, then most of what is missing at the rate so far.
        """
        missing = self.n - len(self.pairs)
        rate = len(self.pairs) / max(self.counts["answered"], 1)
        if not missing:
            return 0
        if not rate:
            return min(PROBE, math.ceil(missing / SHOTS))
        requests = math.ceil(missing / rate)
        return requests if requests <= PROBE else math.ceil(0.9 * requests)

    def check(self, size: int, failed: int, last: dict, log: str | pathlib.Path) -> None:
        """ValueError where going on has no point. size: requests of the round, failed of them."""
        if failed == size:
            raise ValueError(
                f"all of the last {size} requests failed ({last['error']}): the same command goes "
                f"on, with {len(self.pairs)} of {self.n} pairs"
            )
        if self.barren >= BARREN:
            raise ValueError(
                f"the last {self.barren} answers held no new pair ({len(self.pairs)} of {self.n} "
                f"are there; {self.counts['malformed']} malformed, {self.counts['duplicates']} "
                f"duplicates): see {log}, use more --seeds, a higher --temperature, or "
                f"--n {max(len(self.pairs), 1)}"
            )


def synthesize(
    n: int,
    seeds_path: str | pathlib.Path | None,
    exclude: list[str] | None,
    seed: int,
    teacher: access.Model,
    reach: access.Access,
    out: pathlib.Path,
) -> None:
    """The command: ask in rounds until there are n pairs, write the dialogues and the report."""
    seeds = read_seeds(seeds_path)
    excluded = [text for _, text, _ in rows.each(exclude, rows.prompt_of)] if exclude else []
    access.at_least("--n", n, 1)
    collection, k = Collection(n, seeds, excluded), 0
    with reach.endpoint(out / "log.jsonl") as endpoint:
        progress = terminal.Progress("synthesize", n, "pairs")
        try:
            while size := collection.next_round():
                bodies = [
                    teacher.body([{"role": "user", "content": prompt(seeds, seed, i)}], draw=i)
                    for i in range(k, k + size)
                ]
                k += size
                answers, failed, begun = (
                    [None] * size,
                    collection.counts["failed"],
                    len(collection.pairs),
                )
                for done, (i, answer) in enumerate(endpoint.ask_all(bodies), 1):
                    answers[i] = answer
                    progress(begun + (n - begun) * 0.9 * done / size)
                for answer in answers:
                    collection.add(answer)
                collection.check(
                    size, collection.counts["failed"] - failed, answers[-1], endpoint.log
                )
        finally:
            progress.close()
    dialogues = [
        rows.dialogue(f"nq-synthetic-{i:06d}", q, a, "nq-synthetic")
        for i, (q, a) in enumerate(collection.pairs)
    ]
    settings = {
        "teacher_model": teacher.name,
        "n": n,
        "seed": seed,
        "temperature": teacher.temperature,
        "max_tokens": teacher.max_tokens,
        "seeds": len(seeds),
        "excluded_questions": len(excluded),
    }
    access.write(out / "dialogues.jsonl", dialogues, settings, collection.counts, endpoint)
