"""What a teacher is asked in the preset own: the steps that ask it, and their price beforehand.

A teacher is an OpenAI-compatible endpoint, asked by study.answers, or a model path, opened here by
eval.py. Both are asked the same prompts with the same bounds. Left out: the rest of the preset
(own.py), what an answer costs where no --price says so.
"""

import pathlib
from typing import NamedTuple

from study.grid import questions
from study.grid.steps import Step
from tasks import humaneval, mmlu, nq

TOGETHER = "eval teacher"  # steps that open the teacher run in one start
CHARACTERS = 4  # of a token, for an estimate
JUDGED = 300, 1024  # tokens of a judge's prompt beside the answers, and of its reply at most
# Benchmark -> tokens of an answer by an endpoint, and what it is told first.
BRIEF = {
    "mmlu": (64, "Answer with the letter of the right choice alone."),
    "nq": (64, "Answer the last question alone, in a few words."),
    "humaneval": (1024, "Write the whole function, in one block of Python code."),
}


class Teacher(NamedTuple):
    """Who is imitated, and how it is asked. name: at an endpoint; None: `where` is a model path.

    replay: the folder of an earlier run, whose logs answer.
    """

    out: pathlib.Path
    where: str
    name: str | None
    temperature: float
    max_tokens: int
    reach: tuple  # flags of study/access.py, or of eval.py
    replay: str | None

    def folder(self, part: str) -> str:
        return str(self.out / "teacher" / part)

    def ask(self, part: str, prompts: str, needs: tuple, seed: int, **how) -> Step:
        """The step that leaves the answers to prompts in folder(part).

        how: max_tokens, temperature, system, of an endpoint alone.
        """
        out, longest = self.folder(part), str(how.get("max_tokens", self.max_tokens))
        warm = str(how.get("temperature", self.temperature))
        if not self.name:
            argv = ("eval.py", "generate", "--model", self.where, "--chat", "--input", prompts)
            argv += ("--temperature", warm, "--max-new-tokens", longest, "--seed", str(seed))
            argv += self.reach
            argv += ("--out", out)
            return Step(f"ask-{part}", argv, out, "result", needs, together=TOGETHER)
        argv = ("-m", "study.answers", "ask", prompts, "--endpoint", self.where)
        argv += ("--endpoint-model", self.name, "--temperature", warm, "--max-tokens", longest)
        argv += ("--system", how["system"]) if how.get("system") else ()
        argv += self.reach
        if self.replay:
            argv += ("--replay", str(pathlib.Path(self.replay) / "teacher" / part / "log.jsonl"))
        return Step(f"ask-{part}", (*argv, "--out", out), out, "asked", needs)


def ask_benchmarks(teacher: Teacher, listed: list[Step]) -> list[Step]:
    """The steps of eval.py on a model as steps that ask the endpoint, and score its answers."""
    steps = []
    for step in listed:
        name, task = step.name.removesuffix("-teacher"), step.argv[1]
        prompts, predictions = (teacher.folder(f"{name}.{x}.jsonl") for x in ("asked", "said"))
        argv = without(step.argv, "--model", "--out", "--mesh", "--batch", "--dtype")
        write = (*argv, "--write-prompts", prompts)
        steps.append(Step(f"write-{name}", write, prompts, "file", step.needs))
        longest, system = BRIEF[task]
        how = {"max_tokens": longest, "temperature": 0.0, "system": system}
        asked = teacher.ask(name, prompts, (prompts,), 0, **how)
        made = ("-m", "study.grid.questions", "answered", task, "--prompts", prompts)
        made += ("--answers", asked.out, "--out", predictions)
        steps += [asked, Step(f"answered-{name}", made, predictions, "file", (asked.out, prompts))]
        argv = (*argv, "--predictions", predictions, "--out", step.out)
        steps.append(step._replace(argv=argv, needs=(*step.needs, predictions)))
    return steps


def without(argv: tuple[str, ...], *flags: str) -> tuple[str, ...]:
    """A command without these flags, each of which has one value."""
    gone = {k for k, word in enumerate(argv) if word in flags}
    return tuple(w for k, w in enumerate(argv) if k not in gone and k - 1 not in gone)


# --- the price beforehand ---


class Asked(NamedTuple):
    """Requests of one kind, and their tokens at most."""

    what: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


def tokens_of(texts: list[str]) -> int:
    """An estimate, from the characters."""
    return sum(map(len, texts)) // CHARACTERS


def prompts_of(step: Step) -> list[str]:
    """What a step of eval.py asks, by its own task."""
    argv = without(step.argv, "--model", "--out", "--run-untrusted-code")
    flags = dict(zip(argv[2::2], argv[3::2], strict=False))
    task = {"nq": nq, "mmlu": mmlu, "humaneval": humaneval}[step.argv[1]]
    options = {"data": flags["--data"], "train": flags.get("--train")}
    options |= {k: int(flags[f"--{k}"]) for k in ("shots", "limit") if f"--{k}" in flags}
    options = {k: v for k, v in options.items() if k in task.Options.__dataclass_fields__}
    return [row["prompt"] for row in task.Task(task.Options(**options), None).prompts()]


def asked_of_own(
    own: questions.Own, shots: int, limit: int | None, undone: set[str]
) -> list[Asked]:
    """The requests of a file of questions, whose prompts are not written yet."""
    listed = []
    kinds = (("questions", "open", "nq"), ("choices", "choices", "mmlu"))
    for kind, task in ((kind, task) for name, kind, task in kinds if f"ask-{name}" in undone):
        texts, n = [str(row) for row in getattr(own, kind)], own.asked(kind, shots)
        n = min(n, limit or n)
        if n:
            each = tokens_of(texts) * (shots + 1) // len(texts)
            listed.append(Asked(f"questions of {kind} answer", n, n * each, n * BRIEF[task][0]))
    return listed


def total(listed: list[Asked]) -> tuple[int, int, int]:
    """(requests, prompt tokens, completion tokens) of all."""
    return tuple(sum(a[k] for a in listed) for k in (1, 2, 3))  # type: ignore[return-value]


def said(whom: str, listed: list[Asked], price: tuple | None) -> str:
    """What asking comes to, in one line."""
    requests, prompt, completion = total(listed)
    parts = ", ".join(f"{a.requests:,} {a.what}" for a in listed)
    line = (
        f"{whom} is asked at most {requests:,} requests ({parts}): about {prompt:,} prompt tokens "
        f"and at most {completion:,} completion tokens"
    )
    if price:
        line += f", at most {(prompt * price[0] + completion * price[1]) / 1e6:,.2f} by --price"
    return line


def mean_tokens(prompts: list[str], n: int) -> int:
    """Tokens of n of the prompts, by their mean."""
    return tokens_of(prompts) * n // len(prompts) if prompts else 0
