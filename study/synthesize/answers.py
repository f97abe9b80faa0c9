"""A teacher's answers to given prompts, as dialogues to train on or to stand beside a model's.

    python -m study.synthesize answers --prompts FILE --teacher URL --teacher-model NAME --out DIR

Left out: choosing prompts (study.curate leakage).
"""

import collections
import pathlib
from typing import NamedTuple

from host import terminal
from study import rows
from study.synthesize.teacher import Access, Teacher, at_least, dialogue, finish

COUNTS = (
    "prompts",
    "requests",
    "failed",
    "without_text",
    "cut_off",
    "kept",
    "prompt_tokens",
    "completion_tokens",
)


class Prompts(NamedTuple):
    """What is asked: files of prompts, a system message before each, how many answers to each."""

    paths: list
    system: str | None = None
    samples: int = 1


def collect(prompts: Prompts, teacher: Teacher, access: Access, out: pathlib.Path) -> None:
    """The command: ask every prompt, write the dialogues and the report."""
    texts = [(name, text) for name, text, _ in rows.each(prompts.paths, rows.prompt_of)]
    at_least("--samples", prompts.samples, 1)
    counts = collections.Counter(dict.fromkeys(COUNTS, 0))
    counts["prompts"] = len(texts)
    system = [{"role": "system", "content": prompts.system}] if prompts.system else []
    requests = [(name, text, k) for name, text in texts for k in range(prompts.samples)]
    bodies = [
        teacher.body([*system, {"role": "user", "content": text}], k) for _, text, k in requests
    ]
    replies = [None] * len(bodies)
    with access.endpoint(out) as endpoint:
        progress = terminal.Progress("answers", len(bodies), "answers")
        try:
            for done, (i, reply) in enumerate(endpoint.ask_all(bodies), 1):
                replies[i] = reply
                progress(done)
        finally:
            progress.close()
    dialogues = []
    for (name, text, k), reply in zip(requests, replies, strict=True):
        name = name if prompts.samples == 1 else f"{name}.{k}"
        if counted(reply, counts):
            dialogues.append(dialogue(name, text, reply["text"], teacher.model))
    counts["kept"] = len(dialogues)
    settings = {
        "teacher_model": teacher.model,
        "temperature": teacher.temperature,
        "max_tokens": teacher.max_tokens,
        "samples": prompts.samples,
        "system": prompts.system,
        "prompts": [pathlib.Path(p).name for p in prompts.paths],
    }
    finish(out, dialogues, settings, counts, endpoint)
    if counts["failed"]:
        terminal.say(f"{counts['failed']} requests failed: the same command asks them again")


def counted(reply: dict, counts: dict) -> bool:
    """Whether a reply has a text to keep; `counts` says what it was."""
    counts["requests"] += 1
    counts["prompt_tokens"] += reply["prompt_tokens"]
    counts["completion_tokens"] += reply["completion_tokens"]
    if reply["error"] is not None:
        counts["failed"] += 1
        return False
    if not (reply["text"] or "").strip():
        counts["without_text"] += 1
        return False
    counts["cut_off"] += reply["finish"] == "length"
    return True
