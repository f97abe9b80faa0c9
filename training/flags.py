"""The command line of train.py: its flags, their values in one table, what is out of range.

    python train.py --help

Importing this costs no JAX. Left out: what needs the model or the data to be judged (checks.py).
"""

import argparse
import dataclasses
import pathlib

from checkpoint import MODEL_PATHS
from families.config import PRESETS
from host import terminal
from text import TOKENIZER_PATHS

ROOT = pathlib.Path(__file__).resolve().parent.parent

# --- values ---

# flag -> (quickstart: neither --data nor --init is given; the paper's, or ours where it has none).
# None: unset. The warm-up is min(warmup, warmup-fraction of the steps), or --warmup alone where
# that is given alone.
DEFAULTS = {
    "model": ("mini", None),
    "tokenizer": (str(ROOT / "samples" / "tokenizer.model"), None),
    "data": ([str(ROOT / "samples" / "dialogues.jsonl")], None),
    "eval_data": (str(ROOT / "samples" / "heldout.jsonl"), None),
    "template": ("roles", "roles"),
    "pack": ("documents", "stream"),
    "block": (256, 2048),
    "tokens": (None, None),
    "batch": (8, 32),
    "accumulate": (1, 1),
    "epochs": (None, 1.0),
    "steps": (180, None),
    "lr": (5e-2, 2e-3),
    "warmup": (10, 1000),
    "warmup_fraction": (None, 0.1),
    "schedule": ("linear", "constant"),
    "optimizer": ("adamw-scaled", "adamw-scaled"),
    "b1": (0.9, 0.9),
    "b2": (0.95, 0.95),
    "weight_decay": (0.0, 0.0),
    "clip": (1.0, 1.0),
    "loss_mean": ("token", "token"),
    "dtype": ("float32", "bfloat16"),
    "moment_dtype": ("float32", "float32"),
    "grad_dtype": ("float32", "float32"),
    "remat": ("full", "full"),
    "attention": ("auto", "auto"),
    "mix_fraction": (0.0, 0.0),
    "max_bad_rows": (0.01, 0.01),
    "eval_fraction": (0.0, 0.02),
    "seed": (0, 0),
    "save_every": (500, 500),
    "keep": (2, 2),
    "eval_every": (0, 0),
    "samples": (3, 3),
    "log_every": (10, 10),
}
OURS = ("warmup_fraction", "eval_fraction")  # of which the paper says nothing

# What may differ between the run that stopped and the one that goes on: none of it changes the
# numbers beyond rounding.
RESUMABLE = {
    "mesh",
    "out",
    "save_every",
    "keep",
    "keep_best",
    "wandb",
    "warmup",  # compared as the number of steps that it comes to
    "warmup_fraction",
    "eval_every",
    "samples",
    "log_every",
    "verbose",
    "json",
    "attention",
    "remat",
    "prefetch",
    "coordinator",
    "processes",
    "process",
    "deterministic",
    "tensorboard",
    "plan",
    "max_bad_rows",
    "data",
    "eval_data",
    "mix",
    "tokenizer",
    "init",  # paths may move: their contents are compared by fingerprint
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every flag of train.py with its value; None: not asked for."""

    model: str | None
    init: str | None
    tokenizer: str | None
    data: list[str]
    eval_data: str | None
    eval_fraction: float
    template: str
    pack: str
    block: int
    tokens: str | None
    mix: list[str] | None
    mix_fraction: float
    max_bad_rows: float
    batch: int
    accumulate: int
    epochs: float | None
    steps: int | None
    optimizer: str
    lr: float
    warmup: int
    warmup_fraction: float | None
    schedule: str
    b1: float
    b2: float
    weight_decay: float
    clip: float
    loss_mean: str
    seed: int
    mesh: str | None
    dtype: str
    moment_dtype: str
    grad_dtype: str
    remat: str
    attention: str
    prefetch: bool | None
    deterministic: bool
    coordinator: str | None
    processes: int | None
    process: int | None
    plan: str | None
    json: bool
    out: str | None
    save_every: int
    keep: int
    keep_best: bool
    eval_every: int
    log_every: int
    samples: int
    tensorboard: bool
    wandb: bool
    verbose: bool


# --- the command line ---

DESCRIPTION = """\
Finetune a base model on dialogues, with loss on the assistant's tokens only; or train one from
random weights."""
EPILOG = """\
With neither --data nor --init the quickstart values are used, otherwise the paper's (arXiv
2305.15717). Killed or stopped, the same command with the same --out goes on where it was, to the
same weights.

examples:
  python train.py --mesh 8x1
  python train.py --init LLAMA-7B --data mix.jsonl.gz --mesh 8x1 --out out/7b
  python train.py --init gpt2-xl/ --data mix.jsonl.gz --block 1024 --out out/gpt2xl"""


def parser() -> argparse.ArgumentParser:
    """The command line. Defaults are None here: `resolve` fills them from DEFAULTS."""
    p = terminal.Parser(
        prog="train.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    _model_flags(p.add_argument_group("model").add_argument)
    _data_flags(p.add_argument_group("data").add_argument)
    _optimization_flags(p.add_argument_group("optimization").add_argument)
    _device_flags(p.add_argument_group("devices and numbers").add_argument)
    _plan_flags(p.add_argument_group("plan").add_argument)
    _output_flags(p.add_argument_group("output").add_argument)
    return p


def shown(name: str) -> str:
    """The values that a flag has where it is not given, for its help."""
    quick, paper = ("-" if value is None else value for value in DEFAULTS[name])
    word = "default" if name in OURS else "paper"
    return f" [default {paper}]" if quick == paper else f" [{word} {paper}, quickstart {quick}]"


def _model_flags(add):
    add(
        "--model",
        metavar="PRESET",
        help="sizes of a model with random weights, or of an EasyLM stream given to --init: "
        + ", ".join(PRESETS),
    )
    add("--init", metavar="PATH", help=f"start from these weights: {MODEL_PATHS}")
    add("--tokenizer", metavar="PATH", help=f"{TOKENIZER_PATHS} [default: the one beside --init]")


def _data_flags(add):
    add(
        "--data",
        metavar="PATH",
        nargs="+",
        help="dialogues or plain text in any form that data.py reads, or one packed directory of "
        "`data.py pack`",
    )
    add(
        "--eval-data",
        metavar="PATH",
        help="held-out dialogues [default: the packed directory's validation split, or "
        "--eval-fraction of --data]",
    )
    about = "share of the dialogues held out, 0 to 1" + shown("eval_fraction")
    add("--eval-fraction", type=float, metavar="X", help=about)
    about = "role tokens (the paper's), Koala's text, ChatML or Llama 3's" + shown("template")
    add("--template", choices=["roles", "koala", "chatml", "llama3"], help=about)
    about = "concatenate and cut; or whole documents, best fit; or one example a row"
    add("--pack", choices=["stream", "documents", "rows"], help=about + shown("pack"))
    about = "tokens a row; at most the model's positions where unset" + shown("block")
    add("--block", type=int, metavar="T", help=about)
    add(
        "--tokens",
        metavar="N",
        help="how much data, in tokens: 300000, 0.3M, 20M; smaller amounts are subsets of larger "
        "ones [paper 0.3M to 150M; default all]",
    )
    about = "plain text mixed in, loss on all of its tokens (the paper's open question)"
    add("--mix", metavar="PATH", nargs="+", help=about)
    about = "share of the rows that come from --mix, 0 to 1" + shown("mix_fraction")
    add("--mix-fraction", type=float, metavar="X", help=about)
    about = "stop when more than this share of a file is malformed" + shown("max_bad_rows")
    add("--max-bad-rows", type=float, metavar="X", help=about)


def _optimization_flags(add):
    about = "rows a step, over all devices" + shown("batch")
    add("--batch", type=int, metavar="B", help=about)
    about = "micro-batches a step, one after the other; the result is the big batch's"
    add("--accumulate", type=int, metavar="K", help=about + shown("accumulate"))
    add("--epochs", type=float, metavar="E", help="passes over the data" + shown("epochs"))
    about = "optimizer steps; wins over --epochs" + shown("steps")
    add("--steps", type=int, metavar="S", help=about)
    add(
        "--optimizer",
        choices=["adamw-scaled", "easylm", "adamw"],
        help="adamw-scaled: Adam's update times max(RMS(weight), 1e-3); easylm: what EasyLM's "
        "switch computes (Adafactor); adamw: plain" + shown("optimizer"),
    )
    add("--lr", type=float, metavar="X", help="peak learning rate" + shown("lr"))
    about = "steps of linear warm-up from 0" + shown("warmup")
    add("--warmup", type=int, metavar="S", help=about)
    add(
        "--warmup-fraction",
        type=float,
        metavar="X",
        help="warm-up is min(--warmup, X * steps); --warmup alone is taken as it is"
        + shown("warmup_fraction"),
    )
    about = "after the warm-up; cosine and linear end at 0" + shown("schedule")
    add("--schedule", choices=["constant", "cosine", "linear"], help=about)
    add("--b1", type=float, metavar="X", help="decay of the first moment" + shown("b1"))
    about = "decay of the second moment; for easylm the exponent in 1 - t^-b2" + shown("b2")
    add("--b2", type=float, metavar="X", help=about)
    about = "decoupled: lr * X * weight; not on norms and biases, but easylm decays everything"
    add("--weight-decay", type=float, metavar="X", help=about + shown("weight_decay"))
    add("--clip", type=float, metavar="X", help="largest global gradient norm" + shown("clip"))
    about = "mean over the loss tokens of the batch, or EasyLM's mean of the rows' means"
    add("--loss-mean", choices=["token", "row"], help=about + shown("loss_mean"))
    about = "of random weights and of the order of the data" + shown("seed")
    add("--seed", type=int, metavar="N", help=about)


def _device_flags(add):
    dtypes = ["float32", "bfloat16"]
    add(
        "--mesh",
        metavar="DATAxTENSOR",
        help="e.g. 8x1, 4x2; one may be -1 [default: every device x 1]; without an accelerator, "
        "virtual CPU devices [default: one a core, where the rows divide]",
    )
    about = "of activations and gathered weights, which are float32 themselves; on CPUs float32"
    add("--dtype", choices=dtypes, help=about + shown("dtype"))
    about = "of the first moment; the second stays float32" + shown("moment_dtype")
    add("--moment-dtype", choices=dtypes, help=about)
    about = "gradients are reduced and kept in it" + shown("grad_dtype")
    add("--grad-dtype", choices=dtypes, help=about)
    add(
        "--remat",
        choices=["full", "dots", "none"],
        help="what the backward pass recomputes: all but each layer's input; all but matmuls; "
        "nothing" + shown("remat"),
    )
    add(
        "--attention",
        choices=["auto", "reference", "blockwise", "cudnn", "pallas"],
        help="the attention kernel; blockwise is ours and never forms a T x T matrix; auto takes "
        "the best that fits" + shown("attention"),
    )
    add(
        "--prefetch",
        action=argparse.BooleanOptionalAction,
        help="gather the next layer's weights while this one computes: one layer more in memory "
        "[default: on GPUs with several data ranks]",
    )
    add(
        "--deterministic",
        action="store_true",
        help="GPU: bit-exact resume, slower kernels (CPU and TPU are deterministic anyway)",
    )
    add(
        "--coordinator",
        metavar="HOST:PORT",
        help="several processes: where process 0 listens; `auto` on TPU pods and SLURM",
    )
    add("--processes", type=int, metavar="N", help="how many processes there are")
    add("--process", type=int, metavar="I", help="which one this is, from 0")


def _plan_flags(add):
    add(
        "--plan",
        metavar="TOPOLOGY",
        nargs="?",
        const="hand",
        help="train nothing: print what a step costs (memory, FLOPs, bytes, time at least) with "
        "the paper's values where unset, for --model or --init on --mesh [8x1]; given a TPU "
        "topology such as v5p:2x2x2, also compile for it and print XLA's own figures (needs "
        "libtpu, no TPU)",
    )
    add("--json", action="store_true", help="print the plan as JSON")


def _output_flags(add):
    add(
        "--out",
        metavar="DIR",
        help="run directory: run.json, metrics.jsonl, checkpoints/, tokenizer/ [default: a new one "
        "under out/]",
    )
    about = "steps between checkpoints; 0: only at the end" + shown("save_every")
    add("--save-every", type=int, metavar="S", help=about)
    add("--keep", type=int, metavar="N", help="checkpoints kept" + shown("keep"))
    about = "also keep the checkpoint of least held-out loss, measured at each save"
    add("--keep-best", action="store_true", help=about)
    about = "steps between held-out losses; 0: before and after only" + shown("eval_every")
    add("--eval-every", type=int, metavar="S", help=about)
    about = "steps between lines of the log; metrics.jsonl has every step" + shown("log_every")
    add("--log-every", type=int, metavar="S", help=about)
    about = "replies to held-out prompts printed at the end" + shown("samples")
    add("--samples", type=int, metavar="N", help=about)
    about = "also write TensorBoard events to OUT/tensorboard (needs tensorboardX)"
    add("--tensorboard", action="store_true", help=about)
    about = "also send the curves to Weights & Biases, project mynah (needs wandb)"
    add("--wandb", action="store_true", help=about)
    add("--verbose", action="store_true", help="print every flag with its value and its origin")


# --- resolving ---


def resolve(args: argparse.Namespace) -> tuple[Settings, dict[str, str]]:
    """(the settings, flag -> where its value came from). ValueError for what no run can have."""
    quickstart = args.data is None and args.init is None and args.plan is None
    values, origin = dict(vars(args)), {}
    for name, (quick, paper) in DEFAULTS.items():
        origin[name] = "given"
        if values[name] is None:
            values[name] = quick if quickstart else paper
            origin[name] = "quickstart" if quickstart else "paper"
    if args.data:
        _fill_from_packed(values, origin)
    if args.steps is not None and args.epochs is None:
        values["epochs"] = None  # --steps wins
    if args.warmup is not None and args.warmup_fraction is None:
        values["warmup_fraction"] = None
    if not quickstart and args.plan is None:
        if args.data is None:
            raise ValueError(
                "--init without --data: name what to train on, e.g. --data mix.jsonl.gz"
            )
        for name in ("model", "tokenizer") if args.init is None else ():
            if values[name] is None:
                values[name], origin[name] = DEFAULTS[name][0], "no --init"
    settings = Settings(**values)
    check_ranges(settings)
    check_pairs(settings)
    return settings, origin


def _fill_from_packed(values, origin):
    """A packed directory says how it was packed."""
    import data  # what reads packed directories costs more than --help should

    for name, value in data.packed_settings(values["data"]).items():
        if origin[name] != "given":
            values[name], origin[name] = value, "packed directory"


RANGES = {  # flag -> (least, most or None)
    **dict.fromkeys(("block", "batch", "accumulate", "steps", "keep", "log_every"), (1, None)),
    **dict.fromkeys(("epochs", "lr", "warmup", "weight_decay", "clip", "seed"), (0, None)),
    **dict.fromkeys(("save_every", "eval_every", "samples"), (0, None)),
    **dict.fromkeys(("warmup_fraction", "b1", "b2", "mix_fraction", "max_bad_rows"), (0, 1)),
    "eval_fraction": (0, 1),
}


def check_ranges(settings: Settings) -> None:
    for name, (low, high) in RANGES.items():
        value = getattr(settings, name)
        if value is not None and not (low <= value and (high is None or value <= high)):
            most = "" if high is None else f", at most {high}"
            raise ValueError(
                f"--{name.replace('_', '-')} {value} is out of range: use {low} or more{most}"
            )


def check_pairs(settings: Settings) -> None:
    """Flags that need one another."""
    if settings.mix and not settings.mix_fraction:
        raise ValueError(
            "--mix without --mix-fraction: say which share of the rows is plain text, "
            "e.g. --mix-fraction 0.1"
        )
    if settings.mix_fraction and not settings.mix:
        raise ValueError(
            f"--mix-fraction {settings.mix_fraction} without --mix: name the text, "
            "e.g. --mix c4.jsonl.gz"
        )
    if settings.coordinator is None:
        for name in ("processes", "process"):
            if getattr(settings, name) is not None:
                raise ValueError(
                    f"--{name} without --coordinator: name where process 0 listens, e.g. "
                    "--coordinator HOST:1234, or auto on TPU pods and SLURM"
                )
    elif settings.out is None:
        raise ValueError("--coordinator without --out: name the folder that all processes share")
    if settings.json and settings.plan is None:
        raise ValueError("--json without --plan: it prints the plan as JSON")


def table(settings: Settings, origin: dict[str, str]) -> list[str]:
    """The flags of DEFAULTS as lines: name, value, origin, the paper's value where it differs."""
    lines = ["flag              value" + " " * 38 + "from"]
    for name, (_, paper) in DEFAULTS.items():
        value = getattr(settings, name)
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        text = "-" if value is None else text
        word = "default" if name in OURS else "paper"
        note = f"   ({word}: {paper})" if paper is not None and value != paper else ""
        lines.append(f"  {name.replace('_', '-'):<15} {text:<42} {origin[name]}{note}")
    return lines
