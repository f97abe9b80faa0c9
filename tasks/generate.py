"""Continue prompts, or answer conversations (--chat), from a file.

    python eval.py generate --model M --input prompts.jsonl --chat --out DIR

There is no score: the outputs are what style, judges and raters read.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from decoding.records import Sampling, finite
from host.terminal import say
from tasks import inputs, scores
from text.dialogues import parse_row

HELP = "continue prompts, or answer conversations (--chat), from a file"
DIALOGUES = ("conversations", "conversation", "messages", "items", "prompt")  # keys of turns


@dataclasses.dataclass(frozen=True)
class Options:
    input: str
    chat: bool = False
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = 1
    stop: list[str] | None = None
    limit: int | None = None
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        return sampling_of(self, tuple(self.stop or ()))


def sampling_of(options: Any, stop_strings: tuple = ()) -> Sampling:
    """The Sampling of options with the flags of add_sampling_flags."""
    return Sampling(
        max_new=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        n=getattr(options, "n", 1),
        stop_strings=stop_strings,
    )


def add_sampling_flags(
    parser: argparse.ArgumentParser, temperature: float, longest: int
) -> argparse._ArgumentGroup:
    """--max-new-tokens, --temperature, --top-p, --top-k."""
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add("--max-new-tokens", type=int, default=longest, metavar="N", help="[default %(default)s]")
    add(
        "--temperature",
        type=float,
        default=temperature,
        metavar="X",
        help="0: the likeliest token [default %(default)s]",
    )
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="X",
        help="only the likeliest tokens that hold X of the probability [default %(default)s]",
    )
    add(
        "--top-k",
        type=int,
        default=0,
        metavar="N",
        help="only the N likeliest tokens; 0: all [default %(default)s]",
    )
    return group


def add_template_flag(parser: argparse.ArgumentParser) -> None:
    """--template."""
    parser.add_argument(
        "--template",
        choices=["roles", "koala", "chatml", "llama3"],
        help="how conversations are written [default: the model's own; refused where it says none]",
    )


def said_template(model: Any) -> str:
    """The template in force, which the user is told."""
    name = model.need_template()
    say(f"note: conversations are written in the template: {name}")
    return name


def add_flags(parser: argparse.ArgumentParser) -> None:
    rows = "JSON lines or a JSON list, .gz or not; - is standard input"
    add = inputs.add_input_flag(parser, rows)
    add(
        "--chat",
        action="store_true",
        help="prompts are a human's turns, in the model's own template; rows of turns need it",
    )
    add_template_flag(parser)
    add = add_sampling_flags(parser, 0.0, 256).add_argument
    add("--n", type=int, default=1, metavar="N", help="samples of each prompt [default 1]")
    add("--stop", nargs="+", metavar="STR", help="end before any of these")


# --- rows ---


def prompt_of(row: dict) -> str | None:
    """The prompt of a row of a public file, or None.

    "prompt" (a string, or RealToxicityPrompts' object), Vicuna's "text", an "instruction" with its
    input.
    """
    text = row.get("prompt", row.get("text"))
    text = text.get("text") if isinstance(text, dict) else text
    if text is None and isinstance(row.get("instruction"), str):
        instances = row.get("instances")
        nested = isinstance(instances, list) and instances and isinstance(instances[0], dict)
        first = instances[0] if nested and instances else row
        text = row["instruction"] + (f"\n\n{first['input']}" if first.get("input") else "")
    return text if isinstance(text, str) else None


def is_dialogue(row: dict) -> bool:
    """Whether a row holds turns."""
    return any(isinstance(row.get(key), list) for key in DIALOGUES)


def turns_of(row: dict, place: str) -> list[dict]:
    """The turns of a row up to the human's last: its dialogue, else its prompt as one turn."""
    if not is_dialogue(row):
        return [{"from": "human", "value": prompt_of(row)}]
    turns_alone = {k: v for k, v in row.items() if k != "text"}  # often the turns, rendered
    try:
        turns = parse_row(turns_alone, place)[0]["conversations"]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{place}: {error or 'no dialogue'}") from None
    if not turns:
        raise ValueError(f"{place}: the conversation has no turn: it must end with the human's")
    if turns[-1]["from"] == "gpt":
        raise ValueError(
            f"{place}: the conversation ends with the assistant: its last turn must be the human's"
        )
    return turns


# --- the task ---


class Task:
    """The prompts of --input, n samples of each."""

    def __init__(self, options: Options, model):
        self.options, self.model, self.settings = options, model, {}
        rows = inputs.json_rows(options.input, self._wrong)
        rows = inputs.limited(rows, options.limit, self.settings, "prompts")
        self.prompts_and_ids = [self._prompt(place, row) for place, row in rows]
        self.rows = [{k: r[k] for k in ("id", "question_id") if k in r} for _, r in rows]
        self.samples = {
            f"{i}/{s}" if options.n > 1 else f"{i}": (i, s)
            for i in range(len(rows))
            for s in range(options.n)
        }
        self.ids = list(self.samples)
        self.settings["input_fingerprint"] = inputs.fingerprint([row for _, row in rows])
        if options.chat:
            self.settings["template"] = said_template(model)
        elif model.roles:
            say(
                "note: this model has role tokens, so it was trained to answer turns; without "
                "--chat its prompts are continued as plain text"
            )

    def _wrong(self, row):
        if is_dialogue(row):
            return None if self.options.chat else "a conversation needs --chat"
        if prompt_of(row) is not None:
            return None
        return (
            'needs "prompt", "text" or "instruction": a string; or "conversations" or "messages" '
            "(with --chat)"
        )

    def _prompt(self, place, row):
        """(text, ids) of what is continued."""
        m = self.model
        if self.options.chat:
            ids = m.chat_ids(turns_of(row, place))
            prompt = m.tok.decode(ids)
        else:
            prompt = prompt_of(row)
            ids = m.start + m.tok.encode(prompt) or [m.tok.bos]
        if len(ids) >= m.config.P:
            raise ValueError(
                f"{place}: the prompt has {len(ids)} tokens, the model {m.config.P} positions: "
                "shorten it"
            )
        return prompt, ids

    def compute(self, todo: list[str], folder: object) -> Iterator[dict]:
        """The items of `todo` as they are done, in any order."""
        wanted = set(todo)
        numbers = sorted({self.samples[name][0] for name in todo})
        prompts = [self.prompts_and_ids[i][1] for i in numbers]
        for out in self.model.generate(prompts, self.options.sampling, names=numbers):
            name = f"{out.prompt}/{out.sample}" if self.options.n > 1 else f"{out.prompt}"
            if name in wanted:
                prompt, ids = self.prompts_and_ids[out.prompt]
                row = self.rows[out.prompt]
                yield {
                    "id": name,
                    "prompt": prompt,
                    "output": out.text,
                    "tokens": len(out.ids),
                    "prompt_tokens": len(ids),
                    "reason": out.reason,
                    "gap": finite(out.margin),
                } | ({"row": row} if row else {})

    def summarise(self, items: list[dict]) -> dict:
        """How many tokens were made, and why the samples ended."""
        reasons = ("stop", "length", "context")
        return {
            "score": None,
            "n": len(items),
            "interval": None,
            "tokens": sum(i["tokens"] for i in items),
            "ended": {r: sum(i["reason"] == r for i in items) for r in reasons},
        } | scores.close_calls(items)
