"""What a run shows at its start and at its end.

For train.py; nothing to run. Left out: the lines of the steps (log.py), the picture (picture.py).
"""

import pathlib
import shlex
import textwrap
from collections.abc import Sized

import jax
from jax.sharding import Mesh

import model
from host import terminal
from text.templates import needed
from text.tokenizer import Tokenizer
from training import flags, picture, plan

REPLY = 8  # lines of a reply that are shown


def say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def silent(*lines: str) -> None:
    """Several processes: one speaks."""


def opening(
    settings: flags.Settings,
    origin: dict[str, str],
    config: model.Config,
    mesh: Mesh,
    options: model.StepOptions,
    out: pathlib.Path,
) -> list[str]:
    """What matters of a run before its data is known, on one screen; every flag with --verbose."""
    s = settings
    lines = flags.table(s, origin) if s.verbose else []
    weights = f"{model.parameter_count(config):,} weights, vocabulary {config.V:,}"
    begin = f"from {s.init}" if s.init else f"{s.model}, random weights of seed {s.seed}"
    devices, kind = mesh.devices.size, mesh.devices.flat[0].device_kind
    shape = "x".join(str(mesh.shape[a]) for a in mesh.axis_names)
    several = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    ahead = ", the next layer's weights gathered ahead" if options.prefetch else ""
    lines += [
        f"model   {config.family}, {weights} ({begin})",
        f"mesh    {shape} (data x tensor) on {devices} x {kind}{several}; {s.dtype}, attention "
        f"{options.attention}{ahead}",
        f"out     {terminal.printable(out)}; Ctrl-C saves and stops, the same command with --out "
        "goes on",
    ]
    return lines


def about_steps(
    s: flags.Settings, rows: int, held_out: Sized | None, steps: int, warmup: int
) -> list[str]:
    """How long a run is, and what its learning rate does."""
    held = f"{len(held_out) if held_out else 0:,} held out"
    epochs = steps * s.batch * (1 - s.mix_fraction) / rows
    mixed = f", {s.mix_fraction:.0%} of them plain text" if s.mix else ""
    lines = [
        f"data    {rows:,} rows of {s.block} tokens, {held}",
        f"steps   {steps:,} of {s.batch} rows{mixed} = {epochs:.2f} epochs; {s.optimizer}, lr "
        f"{s.lr:g} after a warm-up of {warmup:,} steps, then {s.schedule}",
    ]
    if steps <= warmup:
        highest = s.lr * max(steps - 1, 0) / max(warmup, 1)
        lines.append(
            f"WARNING: {steps} steps end within the warm-up of {warmup}: the learning rate never "
            f"passes {highest:.2g} of {s.lr:g}. Use --warmup-fraction 0.1, more data, or more "
            "--epochs"
        )
    return lines


def about_flops(config: model.Config, mesh: Mesh, tokens: int, block: int) -> str:
    """How MFU is counted here."""
    kind = mesh.devices.flat[0].device_kind
    flops, peak = plan.model_flops(config, tokens, block), plan.peak_flops(kind)
    if not peak:
        return (
            f"MFU: no peak known for {kind}; model FLOPs a step {flops / 1e9:.1f} G "
            f"({plan.FLOPS_FORMULA})"
        )
    return (
        f"MFU = model FLOPs a step / (ms * {mesh.devices.size} devices * {peak / 1e12:.0f} "
        f"TFLOP/s); {plan.FLOPS_FORMULA} = {flops / 1e12:.2f} TFLOP a step"
    )


def replies(pairs: list[tuple[str, str]]) -> list[str]:
    """(prompt, reply) pairs compactly: one line of prompt, the reply indented below it."""
    lines = []
    for prompt, reply in pairs:
        lines.append(f"> {textwrap.shorten(terminal.printable(prompt), 96, placeholder=' ...')}")
        rows = [r for p in terminal.printable(reply).splitlines() for r in textwrap.wrap(p, 94)]
        rows = rows or ["(an empty reply)"]
        lines += [f"    {row}" for row in rows[:REPLY]] + ["    ..."] * (len(rows) > REPLY)
    return lines


def prompt_text(ids: list[int], tok: Tokenizer, template: str) -> str:
    """A prompt without the tokens that open it and its turns, and without their roles' names."""
    if template not in ("chatml", "llama3"):
        return tok.decode([i for i in ids if i not in (tok.bos, tok.user, tok.assistant)])
    opens, turns = needed(tok, template)[0], []
    for i in ids:
        if i == opens:
            turns.append([])
        elif turns and i not in tok.special:
            turns[-1].append(i)
    texts = (tok.decode(turn).partition("\n")[2].strip() for turn in turns)
    return "\n".join(filter(None, texts))


def stopped(out: pathlib.Path, step: int) -> str:
    place = terminal.printable(out)
    return (
        f"stopped by signal after step {step}; saved to {place}: the same command with "
        f"--out {place} goes on"
    )


def summary(out: pathlib.Path, steps: int, seconds: float) -> list[str]:
    """A run that is done: its curve, what it came to. steps: taken since this start."""
    lines = picture.read(out)
    before = next((line["eval_loss_before"] for line in lines if "eval_loss_before" in line), None)
    after = next((line["eval_loss"] for line in reversed(lines) if "eval_loss" in line), None)
    skipped = sum(line["loss_share"] == 0 for line in lines)
    parts = [f"{steps} steps, {terminal.duration(seconds)} in all"]
    if before is not None and after is not None:
        parts.insert(0, f"held-out loss {before:.4f} -> {after:.4f}")
    if skipped:
        parts.append(f"{skipped} steps skipped for want of loss tokens")
    return [*picture.plot(lines), "; ".join(parts)]


def saved(out: pathlib.Path, step: int) -> list[str]:
    """Where a run that is done lies, and what to type next. Draws its curves."""
    parts = ["run.json", "metrics.jsonl", f"checkpoints/{step}", "tokenizer/"]
    parts += picture.draw(out, out.name)
    run = shlex.quote(str(out))
    return [
        f"saved to {terminal.printable(out)}: {', '.join(parts)}",
        "next",
        f"  python eval.py chat --model {run}",
        f"  python eval.py mmlu --model {run} --data mmlu/ --out {run}/mmlu",
        f"  python -m checkpoint convert {run} {run}/hf --to hf",
    ]
