"""Natural Questions, closed book: exact match of what the model writes behind `A:`.

    python eval.py nq --model M --data NQ-open.dev.jsonl --train NQ-open.train.jsonl --shots 3

Normalisation is SQuAD's, as with the benchmark. The paper's 3-shot prompt is not published; ours is
in every result.
"""

import argparse
import dataclasses
import pathlib
import random
from collections.abc import Iterator

from decoding.records import Sampling, finite
from host.terminal import say
from tasks import inputs, scores
from tasks.generate import add_template_flag, said_template

HELP = "Natural Questions, closed book"
STOPS = ("\n",)
STOPS_LLAMA = ("\n", ".", ",")  # LLaMA's own rule, an option since it cuts "U.S." and "1,000"


@dataclasses.dataclass(frozen=True)
class Options:
    data: str | None = None
    train: str | None = None
    shots: int = 3
    chat: bool = False
    max_new_tokens: int = 32
    stop_at_punctuation: bool = False
    predictions: str | None = None
    limit: int | None = None
    seed: int = 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("benchmark").add_argument
    add("--data", metavar="FILE", help="NQ-open.dev.jsonl")
    add("--train", metavar="FILE", help="NQ-open.train.jsonl, for the shots")
    add(
        "--shots",
        type=int,
        default=3,
        metavar="K",
        help="training pairs drawn by --seed, 0 to 64 [default %(default)s]",
    )
    add("--chat", action="store_true", help="ask as a human's turn in the model's own template")
    add_template_flag(parser)
    add("--max-new-tokens", type=int, default=32, metavar="N", help="[default %(default)s]")
    add(
        "--stop-at-punctuation",
        action="store_true",
        help="LLaMA's rule: an answer ends at a full stop or comma too (it cuts U.S.)",
    )


def flags_for(folder: pathlib.Path) -> list[str]:
    """The flags that name this benchmark's files in a folder of the public ones."""
    place = folder / "nq_open"
    train = sorted(place.glob("NQ-open.train*"))
    more = ["--train", str(train[0])] if train else []
    return ["--data", str(place / "NQ-open.dev.jsonl"), *more]


# --- files and prompts ---


def wrong_row(row: dict) -> str | None:
    """What is wrong with a row of NQ-open, or None."""
    answers = row.get("answer")
    if not (isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)):
        return (
            '"answer" is not a list of one string or more: a row is '
            '{"question": "…", "answer": ["…"]}'
        )
    return inputs.needs_strings(row, "question")


def draw_shots(path: inputs.Path, count: int, seed: int) -> list[tuple[str, str]]:
    """`count` training pairs (question, its first answer) drawn by the seed."""
    rows = inputs.json_rows(path, wrong_row)
    if len(rows) < count:
        raise ValueError(
            f"{path} has {len(rows)} rows, fewer than --shots {count}: use fewer shots or another "
            "file"
        )
    drawn = random.Random(seed).sample(rows, count)
    return [(row["question"], row["answer"][0]) for _, row in drawn]


def prompt_of(shots: list[tuple[str, str]], question: str) -> str:
    """`Answer these questions:`, the shots, and the question with its answer left open.

    The questions of NQ-open have no question mark: one is added.
    """

    def ask(q):
        return f"Q: {q.strip().rstrip('?')}?\nA:"

    answered = "".join(f"{ask(q)} {a}\n\n" for q, a in shots)
    return f"Answer these questions:\n\n{answered}{ask(question)}"


def short_answer(output: str, stops: tuple[str, ...] = STOPS) -> str:
    """The answer in what a model wrote behind `A:`: up to a stop string, white space stripped."""
    return scores.cut_at(output, stops).strip()


# --- the task ---


class Task:
    """The questions of --data, and what a model (or a file of predictions) answers."""

    def __init__(self, options: Options, model):
        self.options, self.model, self.settings = options, model, {}
        self.stops = STOPS_LLAMA if options.stop_at_punctuation else STOPS
        source = options.predictions or options.data
        if source is None:
            raise ValueError(
                "nq needs --data NQ-open.dev.jsonl, or --predictions FILE with rows {question, "
                "answer, prediction}"
            )

        def check(row):
            missing = inputs.needs_strings(row, "prediction") if options.predictions else None
            return wrong_row(row) or missing

        rows = [row for _, row in inputs.json_rows(source, check)]
        self.rows = inputs.limited(rows, options.limit, self.settings, "questions")
        self.shots = self._draw()
        self.settings["prompt"] = prompt_of(self.shots, "…")
        self.settings["input_fingerprint"] = inputs.fingerprint(self.rows)
        self.ids = [str(i) for i in range(len(self.rows))]
        if options.chat and model:
            self.settings["template"] = said_template(model)

    def _draw(self):
        o = self.options
        if o.predictions or not o.shots:
            return []
        if not o.train:
            raise ValueError(
                f"--shots {o.shots} needs --train FILE to draw them from: name the training "
                "questions, or use --shots 0"
            )
        self.settings["shots_drawn"] = draw_shots(o.train, o.shots, o.seed)
        return self.settings["shots_drawn"]

    def prompt(self, row: dict, shots: int) -> str:
        return prompt_of(self.shots[:shots], row["question"])

    def prompts(self) -> Iterator[dict]:
        """What --write-prompts writes."""
        return (row | {"prompt": self.prompt(row, len(self.shots))} for row in self.rows)

    def item(self, i: int, prompt: str, output: str) -> dict:
        answer = output.strip() if self.options.predictions else short_answer(output, self.stops)
        gold = self.rows[i]["answer"]
        return {
            "id": str(i),
            "question": self.rows[i]["question"],
            "prompt": prompt,
            "output": output,
            "extracted": answer,
            "gold": gold,
            "verdict": scores.exact_match(answer, gold),
            "f1": scores.token_f1(answer, gold),
        }

    def compute(self, todo: list[str], folder: object) -> Iterator[dict]:
        """The items of `todo` as they are done, in any order."""
        yield from self._predicted(todo) if self.options.predictions else self._generated(todo)

    def _predicted(self, todo):
        for i in map(int, todo):
            item = self.item(i, self.rows[i]["question"], self.rows[i]["prediction"])
            yield item | {"gap": None, "shots": None, "cut": 0}

    def _generated(self, todo):
        m, options = self.model, self.options

        def build(i, shots):
            prompt = self.prompt(self.rows[i], shots)
            return m.chat_ids([{"from": "human", "value": prompt}]) if options.chat else prompt

        room = m.config.P - min(options.max_new_tokens, m.config.P // 4)
        fitted = {
            i: m.truncate_shots(lambda k, i=i: build(i, k), len(self.shots), room)
            for i in map(int, todo)
        }
        fewer = sum(f[2] < len(self.shots) for f in fitted.values())
        cut = sum(f[3] > 0 for f in fitted.values())
        if fewer or cut:
            say(
                f"note: {fewer} of {len(todo)} prompts are longer than {room} tokens with "
                f"{len(self.shots)} shots: shots were dropped one by one; {cut} lost their "
                "beginning"
            )
        sampling = Sampling(options.max_new_tokens, stop_strings=self.stops, seed=options.seed)
        prompts = [ids for ids, *_ in fitted.values()]
        for out in m.generate(prompts, sampling, names=list(fitted)):
            ids, prompt, shots, cut = fitted[out.prompt]
            asked = m.tok.decode(ids) if options.chat else prompt
            more = {"gap": finite(out.margin), "shots": shots, "cut": cut}
            yield self.item(out.prompt, asked, out.text) | more

    def summarise(self, items: list[dict]) -> dict:
        """Exact match with Wilson's interval, token F1, and what the score hangs on."""
        f1, seed = [i["f1"] for i in items], self.options.seed
        found = scores.share([i["verdict"] for i in items])
        found["f1"] = {"score": scores.mean(f1), "interval": scores.bootstrap(f1, seed=seed)}
        found |= wordless_golds(items)
        if self.options.predictions:
            return found
        used = {"shots_used": scores.tally([i["shots"] for i in items])}
        return found | scores.close_calls(items) | used


def wordless_golds(items: list[dict]) -> dict:
    """What SQuAD's rule gives an answer without words: questions whose gold normalises to nothing.

    "A+" and "*" do; an empty answer matches them. The score is SQuAD's all the same.
    """
    wordless = [i for i in items if not all(map(scores.normalise, i["gold"]))]
    if not wordless:
        return {}
    won = sum(i["verdict"] and not scores.normalise(i["extracted"]) for i in wordless)
    right = sum(i["verdict"] for i in items)
    return {
        "wordless_golds": {
            "questions": len(wordless),
            "won_by_an_answer_without_words": won,
            "score_without_these": (right - won) / len(items),
        }
    }
