"""Packing in tokens a second of one core, and how long a training step waits for its batch.

    python bench/data.py packing DIALOGUES --tokenizer LLAMA GPT2    # folders of tokenizers
    python bench/data.py scale DIALOGUES --tokenizer LLAMA           # data.py pack, 150M tokens
    python bench/data.py loader DIALOGUES --tokenizer LLAMA          # 32 x 2048, steps of 20 ms

`packing` runs `data.pack` in this process (--workers 1) and takes processor time, which counts on a
busy machine: reading and tokenizing apart from writing the rows. `scale` draws real dialogues until
there are --tokens of them, each with its number in the first turn, and packs them with the command
that a user types, on all cores. `loader` packs, then takes batches
as train.py's loop does (batches.prefetch over device_batch, one CPU device) while a step sleeps,
as a host does beside an accelerator; the wait is what the loop stands still for, first batch left
out. With --steps-ms 0 nothing is hidden: what a batch costs. Left out: disks slower than the page
cache, several hosts.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import mix  # this folder's
import numpy as np

import data  # the repository's own: its folder stands before this one in the path
from host import terminal
from text import dialogues, packed, tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOAL_TOKENS, GOAL_MINUTES, CORES = 150e6, 30, 2


def packing(args):
    for path in args.tokenizer:
        tok = tokenizer.load(path)
        spent = {"writing": 0.0}
        write = packed.write_split

        def timed(*a, write=write, spent=spent):
            start = time.process_time()
            made = write(*a)
            spent["writing"] += time.process_time() - start
            return made

        with tempfile.TemporaryDirectory() as folder:
            data.pack(
                [args.dialogues[0]],
                tok,
                f"{folder}/warm",
                tokens="50k",
                block=args.block,
                workers=1,
            )  # imports, the tokenizer's first use
            packed.write_split = timed
            try:
                start, wall = time.process_time(), time.perf_counter()
                made = data.pack(
                    args.dialogues, tok, f"{folder}/packed", block=args.block, workers=1
                )
                total, wall = time.process_time() - start, time.perf_counter() - wall
            finally:
                packed.write_split = write
        tokens = sum(s["tokens"] for s in made["splits"].values())
        tokenizing = total - spent["writing"]
        # what data.py does on several cores: tokenizing is shared, writing is one process
        minutes = GOAL_TOKENS / tokens * (tokenizing / CORES + spent["writing"]) / 60
        print(
            f"{tok.kind}, {tokens:,} tokens, block {args.block}: {tokens / total:,.0f} tokens/s of"
            f" a core (wall {wall:.1f} s, processor {total:.1f} s: reading and tokenizing"
            f" {tokens / tokenizing:,.0f} tokens/s, writing {tokens / spent['writing']:,.0f})"
        )
        print(
            f"  {GOAL_TOKENS / 1e6:.0f}M tokens on {CORES} cores: {minutes:.1f} minutes, calculated"
            f" (tokenizing on {CORES}, writing on one; goal {GOAL_MINUTES})"
        )


def drawn(sources, tok, path, tokens):
    """Write dialogues drawn at random until there are so many tokens -> how many dialogues."""
    real = [d for source in sources for d in dialogues.read_dialogues(source)]
    sizes = [len(data.tokenize_dialogue(d, tok, "roles")[0]) for d in real]
    draw, written, n = random.Random(0), 0, 0
    with open(path, "w", encoding="utf-8") as file:
        while written < tokens:
            k = draw.randrange(len(real))
            first, *rest = real[k]["conversations"]
            turns = [first | {"value": f"{first['value']} ({n})"}, *rest]
            file.write(json.dumps({"id": f"{n}", "conversations": turns}) + "\n")
            written, n = written + sizes[k], n + 1
    return n


def scale(args):
    for path in args.tokenizer:
        with tempfile.TemporaryDirectory() as folder:
            source, out = f"{folder}/drawn.jsonl", f"{folder}/packed"
            tok = tokenizer.load(path)
            n = drawn(args.dialogues, tok, source, terminal.count(args.tokens))
            print(f"{n:,} dialogues, {os.path.getsize(source) / 1e6:,.0f} MB", flush=True)
            command = [sys.executable, str(ROOT / "data.py"), "pack", source, "--out", out]
            command += ["--tokenizer", path, "--block", str(args.block), "--pack", args.pack]
            code, figures = mix.watched(command)
            rows = len(data.open_dataset([out], tok)[0])
            made = rows * args.block
            print(
                f"exit {code}, {tok.kind}, {rows:,} rows of {args.block}, {made:,} tokens: "
                f"{figures}, {made / figures.seconds:,.0f} tokens/s"
            )


def loader(args):
    import jax

    import sharding
    from training import batches

    jax.config.update("jax_platforms", "cpu")
    mesh = sharding.make_mesh(1, 1)
    for path in args.tokenizer:
        tok = tokenizer.load(path)
        with tempfile.TemporaryDirectory() as folder:
            data.pack(args.dialogues, tok, f"{folder}/packed", block=args.block, pack=args.pack)
            rows, _ = data.open_dataset(f"{folder}/packed", tok)

            def make(s, rows=rows):
                return batches.device_batch(
                    rows.rows, data.batch_indices(len(rows), args.batch, 0, s), 1, mesh
                )

            make(1)
            for ms in args.steps_ms:
                waits, start = [], time.perf_counter()
                clock = start
                with batches.prefetch(make, range(1, args.steps + 1)) as ahead:
                    for _ in ahead:
                        waits.append(time.perf_counter() - clock)
                        time.sleep(ms / 1000)
                        clock = time.perf_counter()
                took, waited = clock - start - waits[0], sum(waits[1:])
                print(
                    f"{tok.kind}, {args.batch} x {args.block}, {args.pack}, steps of {ms:g} ms:"
                    f" waits {waited / took:.2%} of the time (median"
                    f" {statistics.median(waits[1:]) * 1e3:.2f} ms, 99 %"
                    f" {np.quantile(waits[1:], 0.99) * 1e3:.2f}, largest"
                    f" {max(waits[1:]) * 1e3:.2f}; {args.steps} steps; goal 1 % at 20 ms)"
                )
            parts = {
                "rows from the files": lambda s, rows=rows: rows.rows(
                    data.batch_indices(len(rows), args.batch, 0, s)
                ),
                "a whole batch": make,
            }
            for name, f in parts.items():
                start, wall = time.process_time(), time.perf_counter()
                for s in range(1, 21):
                    f(s)
                print(
                    f"  {name}: {(time.process_time() - start) / 20 * 1e3:.1f} ms of processor"
                    f" time, {(time.perf_counter() - wall) / 20 * 1e3:.1f} ms by the clock"
                )


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("what", choices=["packing", "scale", "loader"])
    p.add_argument(
        "dialogues", nargs="+", metavar="DIALOGUES", help="files of dialogues, as for data.py pack"
    )
    p.add_argument("--tokenizer", nargs="+", required=True, metavar="PATH")
    p.add_argument("--block", type=int, default=2048, metavar="T")
    p.add_argument("--batch", type=int, default=32, metavar="B")
    p.add_argument(
        "--pack", choices=data.PACKS, default="stream", help="but for packing [default %(default)s]"
    )
    p.add_argument("--tokens", default="150M", metavar="N", help="for scale [default %(default)s]")
    p.add_argument(
        "--steps", type=int, default=300, metavar="S", help="for loader [default %(default)s]"
    )
    p.add_argument(
        "--steps-ms",
        type=float,
        nargs="+",
        default=[20],
        metavar="MS",
        help="for loader [default 20]",
    )
    args = p.parse_args(argv)
    try:
        {"packing": packing, "scale": scale, "loader": loader}[args.what](args)
    except (ValueError, FileNotFoundError) as error:
        print(f"bench/data.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
