"""Nested amounts of imitation data: subsets of one mix by one seed, each a prefix of the next in one shuffle.

    python -m study.curate amounts DIR/mix.jsonl.gz --tokenizer T --tokens 0.3M 1M 3M 20M 80M 150M --seed 0 --out DIR

Writes DIR/0.3M.jsonl.gz, ... (the shortest prefix that reaches the amount, tokens as the roles template has them) and
amounts.json, and prints what each contains by source. The smaller file's text is the beginning of the larger one's. An
amount that the mix does not hold is named in one line and not written. Left out: packing (data.py pack).
"""

import collections
import concurrent.futures
import gzip
import json
import multiprocessing
import os
import pathlib
import signal
import sys

import data
from study import mix
from tasks import results
from text import tokenizer

CHUNK = 256  # dialogues that a worker counts at once


def flags(commands):
    """Adds the sub-command amounts."""
    p = commands.add_parser(
        "amounts", help="nested subsets of a mix by tokens", description=__doc__.split("\n\n")[0]
    )
    p.add_argument("mix", metavar="MIX", help="mix.jsonl.gz, or the folder it is in")
    p.add_argument("--tokenizer", required=True, metavar="PATH", help="by which tokens are counted")
    p.add_argument(
        "--tokens",
        nargs="+",
        required=True,
        metavar="N",
        help="amounts, such as 0.3M 1M 3M 20M 80M 150M",
    )
    p.add_argument("--seed", type=int, default=0, help="of the one shuffle (default %(default)s)")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the subsets and amounts.json"
    )
    p.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one a core, one for little data)",
    )
    p.set_defaults(run=run)


def run(args):
    """The command; ValueError, one line, for what the user can mend."""
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers {args.workers}: at least 1 process has to count")
    made = subsets(args.mix, args.tokenizer, args.tokens, args.seed, args.out, args.workers)
    print(*lines(made), sep="\n")


def name_of(tokens):
    """300000 -> "0.3M"."""
    return f"{tokens / 1e6:.6f}".rstrip("0").rstrip(".") + "M"


def subsets(path, tok_path, amounts, seed, out, workers=None):
    """Writes the subsets; returns what amounts.json holds."""
    wanted = sorted({data.parse_count(a) for a in amounts})
    tok, out = tokenizer.load(tok_path), pathlib.Path(out)
    rows = [
        json.dumps(d, ensure_ascii=False).encode("utf-8", "surrogatepass")
        for d in mix.read_mix(path)
    ]
    if not rows:
        raise ValueError(f"{path} holds no dialogue: make the mix again")
    order = [int(i) for i in data.shuffled(len(rows), seed, 4)]
    progress, total, made, at = (
        data.Progress("counting", wanted[-1], "tokens"),
        collections.defaultdict(collections.Counter),
        [],
        0,
    )
    kept = []  # the shuffle's beginning, as far as the largest amount goes
    counted = _counted(
        [rows[i] for i in order],
        tok_path,
        workers or (os.cpu_count() if sum(map(len, rows)) >= mix.SMALL else 1),
    )
    tokens, cuts = 0, {}
    for i, (source, turns, count, loss) in zip(order, counted):
        kept.append(rows[i])
        total[source].update(dialogues=1, turns=turns, tokens=count, loss_tokens=loss)
        tokens += count
        while at < len(wanted) and tokens >= wanted[at]:
            cuts[wanted[at]] = len(kept)
            made.append(
                {
                    "amount": name_of(wanted[at]),
                    "file": f"{name_of(wanted[at])}.jsonl.gz",
                    "sources": {s: dict(c) for s, c in sorted(total.items())},
                }
            )
            at += 1
        progress(tokens)
        if at == len(wanted):
            break
    counted.close()
    progress.close()
    for amount in wanted[at:]:
        print(
            f"curate.py: {name_of(amount)} is more than the mix holds ({tokens:,} tokens): not written",
            file=sys.stderr,
        )
    if not made:
        raise ValueError(
            f"{path} holds {tokens:,} tokens, fewer than every amount of --tokens: name smaller ones, or a larger mix"
        )
    for m in made:
        m["all"] = {
            k: sum(c[k] for c in m["sources"].values())
            for k in ("dialogues", "turns", "tokens", "loss_tokens")
        }
    out.mkdir(parents=True, exist_ok=True)
    for amount, n in cuts.items():
        file = out / f"{name_of(amount)}.jsonl.gz"
        beside = file.with_name(file.name + ".tmp")
        try:
            with open(beside, "wb") as raw:
                with gzip.GzipFile(
                    filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6
                ) as f:
                    for row in kept[:n]:
                        f.write(_line(row))
                raw.flush()
                os.fsync(raw.fileno())
            os.replace(beside, file)
        finally:
            beside.unlink(missing_ok=True)
    found = {
        "seed": seed,
        "tokenizer": tok.fingerprint,
        "mix_dialogues": len(rows),
        "amounts": made,
        "not_held": [name_of(a) for a in wanted[at:]],
    }
    results.write_beside(out / "amounts.json", json.dumps(found, indent=1) + "\n")
    return found


def _line(row):
    try:
        row.decode()
        return row + b"\n"
    except UnicodeDecodeError:  # half of a surrogate pair
        return json.dumps(json.loads(row.decode("utf-8", "surrogatepass"))).encode() + b"\n"


def lines(made):
    """The table of what each amount contains, by source."""
    yield f"{'amount':<8}{'source':<12}{'dialogues':>10}{'turns':>10}{'tokens':>14}{'loss tokens':>14}"
    for m in made["amounts"]:
        for source, c in [*m["sources"].items(), ("all", m["all"])]:
            yield f"{m['amount']:<8}{source:<12}{c['dialogues']:>10,}{c['turns']:>10,}{c['tokens']:>14,}{c['loss_tokens']:>14,}"


def _counted(rows, tok_path, workers):
    """(source, turns, tokens, loss tokens) of each row in order; counts no further than it is asked, by a few chunks."""
    chunks = (rows[k : k + CHUNK] for k in range(0, len(rows), CHUNK))
    if workers == 1:
        _start(tok_path)
        for chunk in chunks:
            yield from _count(chunk)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, (str(tok_path),)
    )
    waiting = collections.deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_count, chunk))
            if len(waiting) > 3 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError(
            "a worker process was killed (for its memory, most likely): use --workers 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(tok_path):
    global _tok
    if multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _tok = tokenizer.load(tok_path)


def _count(rows):
    out = []
    for row in rows:
        d = json.loads(row.decode("utf-8", "surrogatepass"))
        ids, mask = data.tokenize_dialogue(d, _tok)
        out.append(
            (str(d.get("source", "unknown")), len(d["conversations"]), len(ids), int(mask.sum()))
        )
    return out
