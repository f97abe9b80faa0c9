"""Every automatic evaluation, on any model path, and the comparison of two results.

    python eval.py mmlu --model LLAMA-7B --data mmlu/ --shots 5 --out results/7b/mmlu
    python eval.py run mmlu nq humaneval --model LLAMA-7B --data BENCHMARKS --out results/7b
    python eval.py compare results/7b/mmlu results/7b-20m/mmlu

    python eval.py commands FILE       # such commands, one a line: one start for all of them

Each leaves --out with results.json, samples.jsonl and index.html; stopped, the same command goes
on. What a task reads, asks and scores is in its file in tasks/, the model's part in decoding/. Left
out: judges and style (study), several processes.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from host import terminal
from host.terminal import Progress, say
from tasks import flags, inputs, results, scores
from tasks.generate import sampling_of
from tasks.humaneval import Finished
from tasks.page import curve_svg, is_share, page

if TYPE_CHECKING:
    from decoding.opened import Opened


def open_model(source: flags.Source) -> "Opened":
    """The model of a command line. JAX is imported here, so that --help need not wait for it."""
    from decoding import opened

    model = opened.open_model(
        source.model, source.tokenizer, source.model_preset, source.mesh, source.dtype, source.batch
    )
    model.use_template(source.template)
    return model


class Opener:
    """Opens the models of several commands, one at a time.

    The model that the last command used stays open, with its weights; one of the same shape takes
    over its compiled programs.
    """

    def __init__(self):
        self.source, self.model = None, None

    def __call__(self, source: flags.Source) -> "Opened":
        if source != self.source:
            self.source = None  # of what could not be opened
            before, self.model = self.model, open_model(source)
            if before:
                self.model.take_over(before)
            self.source = source
        assert self.model
        if self.model.step is not None:  # a command went over the checkpoints
            self.model.at(None)
        return self.model


# --- one task ---


def evaluate(
    head: flags.Head, model: "Opened | None", task: Any, out: str | None, every_checkpoint: bool
) -> dict | None:
    """One task on the model, or on every checkpoint of it, in a directory that goes on when
    stopped.

    out: None for a new directory. -> its last results.json; None where there is no score yet.
    """
    folder = pathlib.Path(out or terminal.new_out(head.task))
    head = head._replace(settings=head.settings | task.settings)
    try:
        if model and every_checkpoint:
            return evaluate_checkpoints(head, model, task, folder)
        return evaluate_one(head, model, task, folder)
    except Finished as finished:
        say(finished)
        return None


def evaluate_one(head: flags.Head, model: "Opened | None", task: Any, folder: pathlib.Path) -> dict:
    """Evaluate into one result directory, as far as that is not done -> its results.json."""
    name, settings, path = head
    if model:
        settings = settings | model.fingerprints() | {"dtype": str(model.dtype)}
        if model.step is not None:
            settings["step"] = model.step
    result = results.Result(folder, name, settings, path)
    todo = [i for i in task.ids if i not in result.done]
    if result.finished and not todo:
        say(f"{folder} is finished: nothing to do")
        result.file.close()
        report = results.read_result(folder)
    else:
        if result.done:
            say(f"{folder}: {len(result.done)} of {len(task.ids)} items are there, going on")
        report = result.finish(task.ids, fill(result, task, todo, folder, name) | ran_on(model))
    print(f"{line_of(head, model, report)}  ({folder / 'index.html'})")
    return report


def fill(result: results.Result, task: Any, todo: list, folder: pathlib.Path, name: str) -> dict:
    """Compute the items that are to do, each on disk as it is done -> the summary of all."""
    bar = Progress(name, len(task.ids), "items")
    try:
        for item in task.compute(todo, folder) if todo else ():
            result.add(item)
            bar(len(result.done))
        try:
            return task.summarise([result.done[i] for i in task.ids])
        except (KeyError, TypeError, AttributeError, AssertionError) as error:
            if not result.resumed:
                raise
            raise ValueError(
                f"{result.samples} holds items that this task did not write ({error!r}): restore "
                "it, or name another --out"
            ) from None
    except BaseException as error:
        result.pause()
        if isinstance(error, KeyboardInterrupt):
            say(f"\n{folder} keeps what is done: the same command with --out {folder} goes on")
        raise
    finally:
        bar.close()


def ran_on(model: "Opened | None") -> dict:
    """What a result says of where it was computed."""
    if not model:
        return {}
    import jax

    return {"device": model.device, "jax": jax.__version__}


def line_of(head: flags.Head, model: "Opened | None", report: dict) -> str:
    """A result in one line."""
    step = f" step {model.step}" if model and model.step is not None else ""
    low, high = report["interval"] or (None, None)
    score = "" if report["score"] is None else f"{report['score']:.4f}"
    parts = [score + (f" {report['unit']}" if score and "unit" in report else "")]
    parts.append("" if low is None else f"95 % interval {low:.4g} to {high:.4g}")
    parts.append(f"n {report['n']}" + "; a sample" * ("sample" in head.settings))
    return f"{head.task}{step}: " + ", ".join(filter(None, parts))


# --- every checkpoint of a run ---


def evaluate_checkpoints(head: flags.Head, model: "Opened", task: Any, out: pathlib.Path) -> dict:
    """Evaluate each saved checkpoint into OUT/step-N, and draw the curve of their scores."""
    from checkpoint import runs

    runs.resolve_step(model.path)  # says where there is none
    tokens, points, report = tokens_seen(model.path), [], {}
    for step in runs.steps(model.path):
        model.at(step)
        report = evaluate_one(head, model, task, out / f"step-{step}")
        point = {"id": f"step {step}", "step": step, "tokens": tokens.get(step)}
        points.append(point | {k: report[k] for k in ("score", "n", "interval")})
    if report["score"] is None:
        return report
    series = {k: report[k] for k in ("task", "model", "settings", "unit", "chance") if k in report}
    series |= {k: points[-1][k] for k in ("score", "n", "interval")} | {"checkpoints": points}
    results.write_json(out / "results.json", series)
    curve = curve_svg(points, head.task, is_share(series, points))
    results.write_whole(out / "index.html", page(series, points, curve))
    print(f"{len(points)} checkpoints: {out / 'index.html'}")
    return report


def tokens_seen(run: str) -> dict[int, int]:
    """step -> training tokens up to it, from metrics.jsonl."""
    path, seen, total = pathlib.Path(run) / "metrics.jsonl", {}, 0
    for row in results.json_lines(path, repair=False) if path.exists() else ():
        total += row["tokens"]
        seen[row["step"]] = total
    return seen


# --- two results ---


def compare(one: str, other: str, seed: int) -> int:
    """Print the paired difference of two result directories."""
    task = results.read_result(one).get("task")
    metric = {"loglik": "loglik", "perplexity": "nats"}.get(str(task), "verdict")
    task, a, b, differ = results.pair(one, other, metric)
    difference, (low, high) = scores.paired_bootstrap(a, b, seed=seed)
    print(f"{task}, {len(a)} items, mean {metric}: A {a.mean():.4f}, B {b.mean():.4f}")
    print(f"B - A {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} (paired bootstrap)")
    if metric == "verdict":
        only_a, only_b, p = scores.mcnemar(a, b)
        print(
            f"right in A only {only_a}, in B only {only_b}, McNemar's p {p:.4g} (exact, two-sided)"
        )
    for name, (was, now) in differ.items():
        print(f"differs: {name}: A {results.short(was)}, B {results.short(now)}")
    return 0


# --- several tasks ---


def evaluate_several(args: argparse.Namespace, opener: Callable) -> int:
    """Several tasks on a model that is opened once, each into OUT/TASK, and one table of scores."""
    out = args.out or str(terminal.new_out("run"))
    commands = [flags.parser().parse_args(line) for line in flags.commands_of(args, out)]
    for command in commands:
        flags.check(command)
    model = opener(flags.source_of(args))
    tasks = [flags.TASKS[c.task].Task(flags.options_of(c), model) for c in commands]
    table = [("task", "score", "95 % interval", "n", "")]
    for command, task in zip(commands, tasks, strict=True):
        model.at(None)
        report = measured(command, model, task) or {"score": None, "interval": None, "n": 0}
        low, high = report["interval"] or (None, None)
        ends = "-" if low is None else f"{low:.4g} to {high:.4g}"
        score = "-" if report["score"] is None else f"{report['score']:.4f}"
        sample = "a sample" if "sample" in task.settings else ""
        table.append((command.task, score, ends, f"{report['n']:,}", sample))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())
    return 0


def measured(args: argparse.Namespace, model: "Opened | None", task: Any) -> dict | None:
    """What `evaluate` says of a parsed task."""
    head = flags.Head(args.task, flags.settings_of(args), args.model)
    return evaluate(head, model, task, args.out, bool(args.checkpoints))


def evaluate_commands(path: str) -> int:
    """The commands of a file; one that fails is named, and the rest goes on -> exit status."""
    commands, opener, failed = flags.read_commands(path), Opener(), []
    for number, args in commands:
        line = f"eval.py: line {number} of {path}"
        status = terminal.program(lambda args=args: run(args, opener), line)
        if status == 130:  # interrupted
            return status
        failed += [number] if status else []
    print(f"{len(commands)} commands, {len(failed)} failed")
    return 2 if failed else 0


# --- command line ---


def run(args: argparse.Namespace, opener: Callable = open_model) -> int | None:
    """A parsed command -> the exit status, None for 0. opener: flags.Source -> Opened."""
    if args.task == "commands":
        return evaluate_commands(args.file)
    if args.task == "compare":
        return compare(args.a, args.b, args.seed)
    flags.check(args)
    if args.checkpoints:
        from checkpoint import paths

        if not flags.needs_model(args) or args.task == "chat" or paths.kind_of(args.model) != "run":
            raise ValueError(
                "--checkpoints all needs a --model that is a run directory, and a task that scores "
                f"it: leave it out for {args.model or args.task}"
            )
    if args.task == "run":
        return evaluate_several(args, opener)
    if args.task == "chat":
        from decoding import conversation

        return conversation.converse(open_model(flags.source_of(args)), sampling_of(args))
    model = opener(flags.source_of(args)) if flags.needs_model(args) else None
    task = flags.TASKS[args.task].Task(flags.options_of(args), model)
    if getattr(args, "write_prompts", None):
        inputs.write_prompts(args.write_prompts, task.prompts())
        return 0
    result = measured(args, model, task)
    if result and getattr(args, "self_test", False):
        right = round(result["score"] * result["n"])
        print(f"self-test: {right} of {result['n']} canonical solutions pass")
        return 0 if right == result["n"] else 1
    return 0


def main(argv: list[str] | None = None) -> int:
    args = flags.parser().parse_args(argv)
    return terminal.program(lambda: run(args), "eval.py")


if __name__ == "__main__":
    sys.exit(main())
