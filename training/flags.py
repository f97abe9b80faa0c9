"""The command line of train.py: its flags, their quickstart and paper values in one table, what is out of range, what a resumed run may change.

`python train.py --help` prints it. Left out: what needs the model or the data to be judged (train.py says that).
"""

import argparse
import pathlib

import data
import model

HERE = pathlib.Path(__file__).resolve().parent.parent

# -------------------------------------------------------------------------------------------------------------- defaults

# flag -> (quickstart: neither --data nor --init is given, the paper's). None in the paper's column: the paper does not say or does not have it.
DEFAULTS = {
    "model": ("tiny", None),
    "tokenizer": (str(HERE / "samples" / "tokenizer.model"), None),
    "data": ([str(HERE / "samples" / "dialogues.jsonl")], None),
    "eval_data": (str(HERE / "samples" / "heldout.jsonl"), None),
    "template": ("roles", "roles"),
    "pack": ("rows", "stream"),
    "block": (256, 2048),
    "tokens": (None, None),
    "batch": (8, 32),
    "accumulate": (1, 1),
    "epochs": (None, 1.0),
    "steps": (200, None),
    "lr": (4e-2, 2e-3),
    "warmup": (10, 1000),
    "warmup_fraction": (None, None),
    "schedule": ("cosine", "constant"),
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
    "samples": (3, 0),
}

# What may differ between the run that stopped and the one that goes on: none of it changes the numbers beyond rounding.
RESUMABLE = {
    "mesh",
    "out",
    "save_every",
    "keep",
    "eval_every",
    "samples",
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


def parser():
    """The command line. Defaults are None here: `resolve` fills them from DEFAULTS and prints the table."""

    def shown(name):
        quick, paper = DEFAULTS[name]
        same = (
            f"default {paper}"
            if quick == paper
            else f"paper {'-' if paper is None else paper}, quickstart {'-' if quick is None else quick}"
        )
        return f" [{same}]"

    p = argparse.ArgumentParser(
        prog="train.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Finetune a base model on dialogues, with loss on the assistant's tokens only; or train one from random weights.",
        epilog="With neither --data nor --init the quickstart values are used, otherwise the paper's (arXiv 2305.15717). Killed or stopped, the same command with the\n"
        "same --out goes on where it was, to the same weights.\n\nexamples:\n  python train.py --mesh 8x1\n"
        "  python train.py --init LLAMA-7B --data mix.jsonl.gz --mesh 8x1 --out runs/out/7b\n"
        "  python train.py --init gpt2-xl/ --data mix.jsonl.gz --block 1024 --out runs/out/gpt2xl",
    )
    group = p.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="PRESET",
        help=f"sizes of a model with random weights, or of an EasyLM stream given to --init: {', '.join(model.PRESETS)}",
    )
    group.add_argument(
        "--init",
        metavar="PATH",
        help="start from these weights: a run directory, a Hugging Face directory, params::FILE (EasyLM), a llama2.c .bin",
    )
    group.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.model, or a folder with one or with vocab.json + merges.txt [default: the one beside --init]",
    )
    group = p.add_argument_group("data")
    group.add_argument(
        "--data",
        metavar="PATH",
        nargs="+",
        help="dialogues or plain text in any form that data.py reads, or one packed directory of `data.py pack`",
    )
    group.add_argument(
        "--eval-data",
        metavar="PATH",
        help="held-out dialogues [default: the packed directory's validation split, or --eval-fraction of --data]",
    )
    group.add_argument(
        "--eval-fraction",
        type=float,
        metavar="X",
        help="share of the dialogues held out, 0 to 1" + shown("eval_fraction"),
    )
    group.add_argument(
        "--template",
        choices=["roles", "koala"],
        help="role tokens (the paper's), or Koala's text" + shown("template"),
    )
    group.add_argument(
        "--pack",
        choices=["stream", "documents", "rows"],
        help="concatenate and cut; or whole documents, best fit; or one example a row"
        + shown("pack"),
    )
    group.add_argument(
        "--block",
        type=int,
        metavar="T",
        help="tokens a row; at most the model's positions where unset" + shown("block"),
    )
    group.add_argument(
        "--tokens",
        metavar="N",
        help="how much data, in tokens: 300000, 0.3M, 20M; smaller amounts are subsets of larger ones [paper 0.3M to 150M; default all]",
    )
    group.add_argument(
        "--mix",
        metavar="PATH",
        nargs="+",
        help="plain text mixed in, loss on all of its tokens (the paper's open question)",
    )
    group.add_argument(
        "--mix-fraction",
        type=float,
        metavar="X",
        help="share of the rows that come from --mix, 0 to 1" + shown("mix_fraction"),
    )
    group.add_argument(
        "--max-bad-rows",
        type=float,
        metavar="X",
        help="stop when more than this share of a file is malformed" + shown("max_bad_rows"),
    )
    group = p.add_argument_group("optimization")
    group.add_argument(
        "--batch", type=int, metavar="B", help="rows a step, over all devices" + shown("batch")
    )
    group.add_argument(
        "--accumulate",
        type=int,
        metavar="K",
        help="micro-batches a step, one after the other; the result is the big batch's"
        + shown("accumulate"),
    )
    group.add_argument(
        "--epochs", type=float, metavar="E", help="passes over the data" + shown("epochs")
    )
    group.add_argument(
        "--steps",
        type=int,
        metavar="S",
        help="optimizer steps; wins over --epochs" + shown("steps"),
    )
    group.add_argument(
        "--optimizer",
        choices=["adamw-scaled", "easylm", "adamw"],
        help="adamw-scaled: Adam's update times max(RMS(weight), 1e-3); easylm: what EasyLM's switch computes (Adafactor); adamw: plain"
        + shown("optimizer"),
    )
    group.add_argument("--lr", type=float, metavar="X", help="peak learning rate" + shown("lr"))
    group.add_argument(
        "--warmup", type=int, metavar="S", help="steps of linear warm-up from 0" + shown("warmup")
    )
    group.add_argument(
        "--warmup-fraction",
        type=float,
        metavar="X",
        help="warm-up is min(--warmup, X * steps): for small data sets [default off]",
    )
    group.add_argument(
        "--schedule",
        choices=["constant", "cosine", "linear"],
        help="after the warm-up; cosine and linear end at 0" + shown("schedule"),
    )
    group.add_argument(
        "--b1", type=float, metavar="X", help="decay of the first moment" + shown("b1")
    )
    group.add_argument(
        "--b2",
        type=float,
        metavar="X",
        help="decay of the second moment; for easylm the exponent in 1 - t^-b2" + shown("b2"),
    )
    group.add_argument(
        "--weight-decay",
        type=float,
        metavar="X",
        help="decoupled: lr * X * weight; not on norms and biases, but easylm decays everything"
        + shown("weight_decay"),
    )
    group.add_argument(
        "--clip", type=float, metavar="X", help="largest global gradient norm" + shown("clip")
    )
    group.add_argument(
        "--loss-mean",
        choices=["token", "row"],
        help="mean over the loss tokens of the batch, or EasyLM's mean of the rows' means"
        + shown("loss_mean"),
    )
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of random weights and of the order of the data" + shown("seed"),
    )
    group = p.add_argument_group("devices and numbers")
    group.add_argument(
        "--mesh",
        metavar="DATAxTENSOR",
        help="e.g. 8x1, 4x2; one may be -1 [default: every device x 1]; without an accelerator, virtual CPU devices",
    )
    group.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of activations and gathered weights; weights themselves are float32" + shown("dtype"),
    )
    group.add_argument(
        "--moment-dtype",
        choices=["float32", "bfloat16"],
        help="of the first moment; the second stays float32" + shown("moment_dtype"),
    )
    group.add_argument(
        "--grad-dtype",
        choices=["float32", "bfloat16"],
        help="gradients are reduced and kept in it" + shown("grad_dtype"),
    )
    group.add_argument(
        "--remat",
        choices=["full", "dots", "none"],
        help="what the backward pass recomputes: all but each layer's input; all but matmuls; nothing"
        + shown("remat"),
    )
    group.add_argument(
        "--attention",
        choices=["auto", "reference", "blockwise", "cudnn", "pallas"],
        help="the attention kernel; blockwise is ours and never forms a T x T matrix; auto takes the best that fits"
        + shown("attention"),
    )
    group.add_argument(
        "--prefetch",
        action=argparse.BooleanOptionalAction,
        help="gather the next layer's weights while this one computes: one layer more in memory "
        "[default: on GPUs with several data ranks]",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="GPU: bit-exact resume, slower kernels (CPU and TPU are deterministic anyway)",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="several processes: where process 0 listens; `auto` on TPU pods and SLURM",
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many processes there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    group = p.add_argument_group("plan")
    group.add_argument(
        "--plan",
        metavar="TOPOLOGY",
        nargs="?",
        const="hand",
        help="train nothing: print what a step costs (memory, FLOPs, bytes, time at least) with the paper's values where unset, for --model or --init on "
        "--mesh [8x1]; given a TPU topology such as v5p:2x2x2, also compile for it and print XLA's own figures (needs libtpu, no TPU)",
    )
    group = p.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="DIR",
        help="run directory: run.json, metrics.jsonl, checkpoints/, tokenizer/ [default: a new one under out/]",
    )
    group.add_argument(
        "--save-every",
        type=int,
        metavar="S",
        help="steps between checkpoints; 0: only at the end" + shown("save_every"),
    )
    group.add_argument("--keep", type=int, metavar="N", help="checkpoints kept" + shown("keep"))
    group.add_argument(
        "--eval-every",
        type=int,
        metavar="S",
        help="steps between held-out losses; 0: before and after only" + shown("eval_every"),
    )
    group.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="replies to held-out prompts printed at the end" + shown("samples"),
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write TensorBoard events to OUT/tensorboard (needs tensorboardX)",
    )
    return p


def resolve(args):
    """Fill unset flags from DEFAULTS in place; returns flag -> where its value came from."""
    quickstart = args.data is None and args.init is None and args.plan is None
    source = {}
    for name, (quick, paper) in DEFAULTS.items():
        if getattr(args, name) is not None:
            source[name] = "given"
            continue
        setattr(args, name, quick if quickstart else paper)
        source[name] = "quickstart" if quickstart else "paper"
    for name, value in data.packed_settings(args.data).items() if args.data else ():
        if source[name] != "given":
            setattr(args, name, value)
            source[name] = "packed directory"
    if args.steps is not None and source["steps"] == "given" and source["epochs"] != "given":
        args.epochs = None  # --steps wins
    if not quickstart and args.plan is None:
        if args.data is None:
            raise ValueError(
                "--init without --data: name what to train on, e.g. --data mix.jsonl.gz"
            )
        if args.init is None and args.model is None:
            args.model, source["model"] = "tiny", "no --init"
        if args.init is None and args.tokenizer is None:
            args.tokenizer, source["tokenizer"] = DEFAULTS["tokenizer"][0], "no --init"
    for name, low, high in [
        ("block", 1, None),
        ("batch", 1, None),
        ("accumulate", 1, None),
        ("steps", 1, None),
        ("epochs", 0, None),
        ("lr", 0, None),
        ("warmup", 0, None),
        ("warmup_fraction", 0, 1),
        ("b1", 0, 1),
        ("b2", 0, 1),
        ("weight_decay", 0, None),
        ("clip", 0, None),
        ("mix_fraction", 0, 1),
        ("max_bad_rows", 0, 1),
        ("eval_fraction", 0, 1),
        ("save_every", 0, None),
        ("keep", 1, None),
        ("eval_every", 0, None),
        ("samples", 0, None),
        ("seed", 0, None),
    ]:
        value = getattr(args, name)
        if value is not None and not (low <= value and (high is None or value <= high)):
            raise ValueError(
                f"--{name.replace('_', '-')} {value} is out of range: use {low} or more"
                + (f", at most {high}" if high is not None else "")
            )
    if args.mix and not args.mix_fraction:
        raise ValueError(
            "--mix without --mix-fraction: say which share of the rows is plain text, e.g. --mix-fraction 0.1"
        )
    if args.mix_fraction and not args.mix:
        raise ValueError(
            f"--mix-fraction {args.mix_fraction} without --mix: name the text, e.g. --mix c4.jsonl.gz"
        )
    return source


def print_flags(args, source, say):
    say("flag              value" + " " * 38 + "from")
    for name in DEFAULTS:
        value = getattr(args, name)
        text = (
            "-"
            if value is None
            else " ".join(map(str, value))
            if isinstance(value, list)
            else str(value)
        )
        paper = DEFAULTS[name][1]
        note = f"   (paper: {paper})" if paper is not None and value != paper else ""
        say(f"  {name.replace('_', '-'):<15} {text:<42} {source[name]}{note}")
