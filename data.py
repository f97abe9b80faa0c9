"""Dialogues -> ids and loss mask -> packed blocks on disk -> the batch of step s.

    python data.py pack SOURCE... --tokenizer T --out DIR      # then: python train.py --data DIR
    python data.py show DIR --row 3                            # one row, its loss tokens coloured

The packed directory is a TFDS directory (ArrayRecord), read by random access: `tfds.builder_from_directory(DIR)
.as_data_source("train")[i]` is {"tokens": int32 [block + 1], "loss_mask": int8 [block + 1]}, with "segment": int32
[block + 1] for the packings documents and rows. Beside the rows lie pack.json (how it was made) and a copy of the
tokenizer. What a row of a source may look like: dialogues.py; how rows are filled, and in what order: blocks.py. Left
out: cleaning and filtering (study), resuming a packing that was killed (it starts over; nothing half-written is ever
under DIR).
"""

import argparse
import array
import collections
import concurrent.futures
import contextlib
import fractions
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import time

import numpy as np

from text import tokenizer
from text.dialogues import (
    Malformed,
    has_answer,
    is_tfds,
    parse_row,
    peculiarities,
    raw_chunks,
    read_dialogues,  # noqa: F401  for who reads dialogues through this file
    source_files,
    split_key,
    turns,
)
from text.rows import document_rows, shuffled, single_rows, split_off, stream_rows

TEMPLATES, PACKS = ("roles", "koala"), ("stream", "documents", "rows")
DTYPES = {"tokens": np.int32, "loss_mask": np.int8, "segment": np.int32}
FORMAT = 1  # of the packed directory: raise it when the same sources and settings give other rows
SHARD = 1 << 16  # rows a file
SMALL = 8 << 20  # bytes of sources below which starting worker processes takes longer than it saves


# ---- dialogue -> ids and mask ----------------------------------------------------------------------------------------


def tokenize_dialogue(dialogue, tok, template="roles"):
    """(tokens int32 [n], loss_mask int8 [n]) of a dialogue, mask 1 where that token is to be predicted.

    roles  <s>, then <|user|> text for a human turn and <|assistant|> text </s> for an answer.
    koala  <s> "BEGINNING OF CONVERSATION: USER: text GPT:" answer </s> "USER: text GPT:" answer </s>: plain text,
           context and answer tokenized apart and no space after "GPT:" (SentencePiece writes one by itself).
    Loss on the answers' text and their </s>, so that the masked-in ids decode to the answers. Which answers are learned
    and where a system text goes: dialogues.turns. A document {"text"} is <s> text </s>, loss on all but <s>.
    """
    ids, mask = [tok.bos], [0]

    def put(piece, learned):
        ids.extend(piece)
        mask.extend([int(learned)] * len(piece))

    if "text" in dialogue:
        put(tok.encode(dialogue["text"]) + [tok.eos], True)
    elif template == "roles":
        for speaker, text, learned in turns(dialogue):
            put([tok.user if speaker == "human" else tok.assistant], False)
            put(tok.encode(text) + ([] if speaker == "human" else [tok.eos]), learned)
    else:
        context = "BEGINNING OF CONVERSATION:"
        for speaker, text, learned in turns(dialogue):
            context += (" " if context else "") + (
                f"USER: {text}" if speaker == "human" else "GPT:"
            )
            if speaker == "gpt":
                put(tok.encode(context), False)
                put(tok.encode(text) + [tok.eos], learned)
                context = ""
        put(tok.encode(context), False)
    return np.array(ids, np.int32), np.array(mask, np.int8)


# ---- the batch of a step ---------------------------------------------------------------------------------------------


def batch_indices(n_rows, batch, seed, step):
    """Rows of the batch of step `step` (from 0), int64 [batch]: the epochs' shuffles end to end, cut into batches.

    A function of its arguments alone; each epoch visits every row once, and nothing is dropped at its end.
    """
    return _take(n_rows, seed, step * batch, batch)


def _take(n, seed, start, count):
    at = range(start, start + count)
    return np.array([_epoch(n, seed, i // n)[i % n] for i in at], np.int64)


@functools.lru_cache(4)
def _epoch(n, seed, epoch):
    return shuffled(n, seed, 2, epoch)


def mixed(main, extra, batch, fraction, seed, step):
    """(read, indices [batch]) of step `step` where the share `fraction` of the rows comes from the data set `extra`.

    read(indices) -> as Dataset.rows; indices from len(main) on are rows of `extra`. Before step s, floor(s * batch *
    fraction) rows came from extra: the share is exact in the long run. Each data set goes through epochs of its own.
    """
    if main.columns != extra.columns:
        raise ValueError(
            f"--data and --mix are packed differently (ids a row: {main.columns} and {extra.columns}): "
            "use the same --pack and --block"
        )
    share = fractions.Fraction(fraction).limit_denominator(10**6)
    before, after = int(step * batch * share), int((step + 1) * batch * share)
    indices = np.concatenate(
        [
            _take(len(main), seed, step * batch - before, batch - (after - before)),
            _take(len(extra), seed, before, after - before) + len(main),
        ]
    )

    def read(wanted):
        own = wanted < len(main)
        a, b = main.rows(wanted[own]), extra.rows(wanted[~own] - len(main))
        at = np.argsort(np.argsort(~own, kind="stable"), kind="stable")
        return {name: np.concatenate([a[name], b[name]])[at] for name in a}

    return read, indices


# ---- sources -> a packed directory -----------------------------------------------------------------------------------


def parse_count(text):
    """ "20M", "0.3M", "65,536", "1e6" -> int; suffixes k, M, B or G are powers of 1000. None stays None."""
    if text is None:
        return None
    number = re.fullmatch(
        r"(\d+(?:\.\d*)?|\.\d+)(?:e\+?(\d))?([kmbg]?)", re.sub(r"[,_\s]", "", str(text)).lower()
    )
    zeros = (
        int(number[2] or 0) + {"": 0, "k": 3, "m": 6, "b": 9, "g": 9}[number[3]] if number else 0
    )
    if not number or fractions.Fraction(number[1]) * 10**zeros < 1:
        raise ValueError(f"--tokens {text} is no number of tokens: write 300000, 0.3M, 20M or 1.5B")
    return int(fractions.Fraction(number[1]) * 10**zeros)


def _recipe(paths, tok, template, pack, block, tokens, eval_fraction, seed, max_bad):
    """(sources, what pack.json says of how it is made); the fingerprint is of all that the rows depend on."""
    for flag, value, known in (("template", template, TEMPLATES), ("pack", pack, PACKS)):
        if value not in known:
            raise ValueError(f"--{flag} {value} is unknown: use {' or '.join(known)}")
    if block < 1:
        raise ValueError(f"--block {block} is no length: a row predicts at least 1 token")
    if not 0 <= eval_fraction < 1:
        raise ValueError(
            f"--eval-fraction {eval_fraction:g} is not in 0 <= x < 1: 0.02 holds out 2 % of the dialogues"
        )
    if not 0 <= max_bad <= 1:
        raise ValueError(
            f"--max-bad-rows {max_bad:g} is not in 0 to 1: 0.01 stops where over 1 % of a file is bad"
        )
    if template == "roles" and tok.user is None:
        raise ValueError(
            "--template roles needs a tokenizer with role tokens: load it so, or use --template koala"
        )
    sources, passed = source_files(paths)
    for source in sources:
        if is_packed(source):
            raise ValueError(
                f"{source} is packed already: give it to train.py --data as it is, alone"
            )
    for p in passed:
        note(f"{p} is neither JSON nor .txt: passed over")
    made = {
        "format": FORMAT,
        "template": template,
        "pack": pack,
        "block": block,
        "tokens": parse_count(tokens),
        "eval_fraction": eval_fraction,
        "seed": seed,
        "vocabulary": tok.size,
        "tokenizer": tok.fingerprint,
    }
    digests = [_sha256(s) for s in sources]
    fingerprint = hashlib.sha256(
        json.dumps(made | {"sources": digests}, sort_keys=True).encode()
    ).hexdigest()
    named = [
        {"name": s.name, "bytes": s.stat().st_size, "sha256": digest}
        for s, digest in zip(sources, digests)
    ]
    return sources, made | {"max_bad_rows": max_bad, "sources": named, "fingerprint": fingerprint}


def _sha256(path):
    """Of a file, or of the files of a folder one after another in the order of their names."""
    digest = hashlib.sha256()
    for part in [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file()):
        with open(part, "rb") as f:
            while piece := f.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def pack(
    paths,
    tok,
    out,
    *,
    template="roles",
    pack="stream",
    block=2048,
    tokens=None,
    eval_fraction=0.0,
    seed=0,
    max_bad=0.01,
    workers=None,
):
    """Write the packed directory `out`, whole or not at all; returns what its pack.json holds, a dict.

    Of the dialogues, shuffled by the seed, validation is split off first, whatever `tokens` is; train is the longest
    head of the rest with at most `tokens` tokens before packing, so that a smaller amount is a subset of a larger one
    (a dialogue stays whole; a plain text is cut to fit). The bytes written depend on the sources and settings, not on
    the number of workers (processes; None: by size). Where `out` is there and was made from the same, nothing is done.
    ValueError, one line, for what the user can mend.
    """
    sources, made = _recipe(paths, tok, template, pack, block, tokens, eval_fraction, seed, max_bad)
    return _pack(sources, made, tok, pathlib.Path(out), workers)


def _pack(sources, made, tok, out, workers):
    with written_beside(out) as folder:
        if folder is None:
            there = _made(out)
            if there.get("fingerprint") != made["fingerprint"]:
                raise ValueError(
                    f"{out} exists and was not made from these sources and settings: remove it, or name "
                    "another --out"
                )
            return there
        if tok.warning:
            note(tok.warning)
        lengths, keys, counts = _spill(
            sources, tok, made["template"], made["max_bad_rows"], workers, folder / "spill"
        )
        if not len(lengths):
            raise ValueError(
                f"none of the {counts['rows']:,} rows holds an answer to learn from: name other sources"
            )
        spill, starts = np.memmap(folder / "spill", np.int32, "r"), np.cumsum(lengths) - lengths
        read = lambda i: spill[starts[i] : starts[i] + lengths[i]]
        held = split_off(keys, made["eval_fraction"], made["seed"])
        order = shuffled(len(lengths), made["seed"], 0)
        train, validation = order[~held[order]], order[held[order]]
        if made["tokens"]:
            total = np.cumsum(lengths[train])
            n = int(np.searchsorted(total, made["tokens"], "right"))
            left = made["tokens"] - int(total[n - 1] if n else 0)
            if (
                n < len(train) and left > 1 and read(train[n])[1] & 1
            ):  # loss from the second id on: a text
                lengths[train[n]] = left
                n += 1
            if not n:
                raise ValueError(
                    f"--tokens {made['tokens']:,} is less than the {lengths[train[0]]:,} of the first "
                    f"dialogue by --seed {made['seed']}: ask for more"
                )
            if total[-1] < made["tokens"]:
                note(
                    f"WARNING: --tokens {made['tokens']:,}, but there are only {total[-1]:,}: all are taken"
                )
            train = train[:n]
        splits = {"train": train} | ({"validation": validation} if len(validation) else {})
        made = made | {"counts": dict(counts)}
        made["splits"] = {
            split: _write_split(folder, split, read, chosen, lengths, made["pack"], made["block"])
            for split, chosen in splits.items()
        }
        (folder / "spill").unlink()
        _write_metadata(folder, made)
        tok.save(folder / "tokenizer")
        (folder / "pack.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return made


@contextlib.contextmanager
def written_beside(out):
    """A folder OUT.tmp to fill, which becomes OUT when the block ends without an error; None where OUT is there.

    One process at a time: others wait, and find OUT. What a killed process left is cleared.
    """
    import fcntl

    folder = out.with_name(out.name + ".tmp")
    while not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(folder / "lock", "a")
        except FileNotFoundError:
            continue
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_same(lock, folder / "lock"):
                continue  # renamed or cleared by the process that had it
            if out.exists():
                shutil.rmtree(folder)
                break
            try:
                for old in set(folder.iterdir()) - {folder / "lock"}:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
                yield folder
                os.rename(folder, out)
            except BaseException:
                shutil.rmtree(folder)
                raise
            (out / "lock").unlink()
            return
    yield None


def _is_same(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _spill(sources, tok, template, max_bad, workers, path):
    """Tokenize every dialogue that has an answer into the file `path` (int32, id * 2 + mask, one after another).

    Returns (lengths int64 [n], split keys int64 [n], Counter of rows, dialogues and what is worth telling about them).
    """
    sizes = [s.stat().st_size for s in sources]
    if workers is None:
        workers = os.cpu_count() if sum(sizes) >= SMALL else 1
    lengths, keys, counts = (
        array.array("q"),
        array.array("q"),
        collections.Counter(rows=0, dialogues=0, malformed=0),
    )
    progress = Progress("tokenizing", sum(sizes), "bytes")
    files = [Malformed(s, max_bad) for s in sources]
    jobs = (
        (number, s.name, chunk, at)
        for number, s in enumerate(sources)
        for chunk, at in raw_chunks(s)
    )
    last = 0
    with open(path, "wb") as f:
        for number, rows, at, (ids, size, key, bad, found) in _tokenized(
            jobs, tok, template, workers
        ):
            while last < number:
                files[last].close()
                last += 1
            files[number].add(rows, bad)
            f.write(ids)
            lengths.extend(size)
            keys.extend(key)
            counts.update(found, rows=rows, malformed=len(bad))
            progress(sum(sizes[:number]) + at)
    for file in files[last:]:
        file.close()
    progress.close()
    return np.array(lengths), np.array(keys), counts


def _tokenized(jobs, tok, template, workers):
    """(source number, rows, bytes read, result of _tokenize) of each job, in their order; few chunks wait in memory."""
    if workers == 1:
        for number, name, chunk, at in jobs:
            yield number, len(chunk), at, _tokenize(name, chunk, tok, template)
        return
    # Fresh processes: a fork of one in which JAX has threads may hang.
    spawn, about = multiprocessing.get_context("spawn"), (str(tok.files[0]), tok.roles, template)
    pool = concurrent.futures.ProcessPoolExecutor(workers, spawn, _start_worker, about)
    waiting = collections.deque()
    try:
        for job in jobs:
            number, name, chunk, at = job
            waiting.append((number, len(chunk), at, pool.submit(_work, name, chunk)))
            if len(waiting) > 3 * workers:
                *what, result = waiting.popleft()
                yield *what, result.result()
        for *what, result in waiting:
            yield *what, result.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError(
            "a worker process was killed (for its memory, most likely): use --workers 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(path, roles, template):
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    # A worker whose parent was killed would wait for work for ever.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _worker = tokenizer.load(path, roles), template


def _work(name, chunk):
    return _tokenize(name, chunk, *_worker)


def _tokenize(name, chunk, tok, template):
    """(ids as bytes of int32, lengths, split keys, malformed [(place, reason)], Counter) of a chunk of raw rows."""
    ids, lengths, keys, bad, counts = [], [], [], [], collections.Counter()
    for place, row in chunk:
        try:
            found = parse_row(row, f"{name} {place}")
        except ValueError as error:
            bad.append((place, str(error)))
            continue
        counts["rows without an answer (skipped)"] += not found
        for dialogue in found:
            counts["dialogues"] += 1
            counts.update(peculiarities(dialogue))
            if not has_answer(dialogue):
                counts["dialogues without an answer to learn (skipped)"] += 1
                continue
            tokens, mask = tokenize_dialogue(dialogue, tok, template)
            ids.append((tokens * 2 + mask).astype(np.int32).tobytes())
            lengths.append(len(tokens))
            keys.append(split_key(dialogue))
    return b"".join(ids), lengths, keys, bad, counts


def _write_split(folder, split, read, chosen, lengths, pack, block):
    """Write the rows of one split; returns its counts, a dict. Padding has id 0, mask 0, segment 0."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    n = lengths[chosen]
    longer, total = int((n > block + 1).sum()), int(n.sum())
    counts = {"rows": 0, "dialogues": len(chosen), "tokens": total, "loss_tokens": 0}
    if pack == "stream":
        rows, expected = stream_rows(read, chosen, block), -(-(total - 1) // block)
    elif pack == "documents":
        rows, expected = document_rows(read, chosen, lengths, block), -(-total // (block + 1))
        counts["dialogues longer than the block (go on in another row)"] = longer
    else:
        rows, expected = single_rows(read, chosen, block), len(chosen)
        counts["dialogues longer than the block (cut)"] = longer
        counts["tokens cut off"] = int(np.maximum(n - block - 1, 0).sum())
        counts["dialogues without a loss token before the cut (skipped)"] = 0
    progress = Progress(f"writing {split}", expected, "rows")
    shards, writer = [], None
    for found in rows:
        if found is None:
            counts["dialogues without a loss token before the cut (skipped)"] += 1
            continue
        if counts["rows"] % SHARD == 0:
            writer and writer.close()
            shards.append(0)
            # group_size 1: a record is read without its neighbours.
            writer = ArrayRecordWriter(str(folder / f"{split}-{len(shards) - 1}"), "group_size:1")
        row, segment = found
        example = tf_example_pb2.Example()
        for name, values in zip(DTYPES, (row >> 1, row & 1, segment)):
            if values is not None:
                example.features.feature[name].int64_list.value.extend(values.tolist())
        writer.write(example.SerializeToString(deterministic=True))
        shards[-1] += 1
        counts["rows"] += 1
        counts["loss_tokens"] += int((row & 1).sum())
        progress(counts["rows"])
    progress.close()
    if writer is None:
        raise ValueError(
            f"{split}: none of its {len(chosen):,} dialogues has a loss token within --block {block}: use "
            "a longer one"
        )
    writer.close()
    for i in range(len(shards)):
        os.rename(
            folder / f"{split}-{i}",
            folder / f"mynah-{split}.array_record-{i:05d}-of-{len(shards):05d}",
        )
    return counts | {"shards": shards}


def _write_metadata(folder, made):
    """What makes the folder a TFDS directory: dataset_info.json and features.json."""
    import tensorflow_datasets as tfds

    columns = [name for name in DTYPES if name != "segment" or made["pack"] != "stream"]
    features = {
        name: tfds.features.Tensor(shape=(made["block"] + 1,), dtype=DTYPES[name])
        for name in columns
    }
    names = tfds.core.ShardedFileTemplate(
        folder, dataset_name="mynah", filetype_suffix="array_record"
    )
    size = lambda split: sum(f.stat().st_size for f in folder.glob(f"mynah-{split}.*"))
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=counts["shards"],
            num_bytes=size(split),
            filename_template=names.replace(split=split),
        )
        for split, counts in made["splits"].items()
    ]
    features = tfds.features.FeaturesDict(features)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=splits, check_data=False
    )


class Progress:
    """How far something is and when it ends, on stderr: in place on a terminal, else a line every ten seconds."""

    def __init__(self, what, total, unit):
        self.what, self.total, self.unit, self.started = what, max(total, 1), unit, time.monotonic()
        self.every, self.begin, self.end = (
            (0.3, "\r\033[K", "") if sys.stderr.isatty() else (10, "", "\n")
        )
        self.next = self.started + self.every

    def __call__(self, done):
        now, share = time.monotonic(), min(done / self.total, 1)
        if now >= self.next and share:
            self.next = now + self.every
            left, bar = (now - self.started) * (1 - share) / share, "#" * round(30 * share)
            print(
                f"{self.begin}{self.what} [{bar:<30}] {share:4.0%} of {self.total:,} {self.unit}, {left:,.0f} s left",
                end=self.end,
                file=sys.stderr,
                flush=True,
            )

    def close(self):
        print(self.begin, end="", file=sys.stderr, flush=True)


def note(text):
    print(f"data.py: {text}", file=sys.stderr)


def summary(made):
    """What a packing made and skipped, lines of text."""
    for split, c in made["splits"].items():
        yield (
            f"{split:<11}{c['rows']:>9,} rows of {made['block']:,}, {c['dialogues']:,} dialogues, {c['tokens']:,} "
            f"tokens, {c['loss_tokens']:,} loss tokens ({c['loss_tokens'] / c['tokens']:.1%})"
        )
        yield from (f"{'':<11}{n:>9,} {what}" for what, n in c.items() if " " in what and n)
    c = made["counts"]
    yield f"{'read':<11}{c['rows']:>9,} rows, {c['dialogues']:,} dialogues, {c['malformed']:,} malformed rows (skipped)"
    yield from (f"{'':<11}{n:>9,} {what}" for what, n in c.items() if " " in what and n)


# ---- a packed directory -> rows --------------------------------------------------------------------------------------


class Dataset:
    """The rows of one split of a packed directory, read by random access; none of them stays in memory.

    len(); columns {name: ids a row}; fingerprint (str: of what made the directory, and the split).
    """

    def __init__(self, path, split):
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder_from_directory(str(path))
            missing = [f.name for f in builder.info.splits[split].filepaths if not f.exists()]
            self._source = builder.as_data_source(split)
        except Exception as error:  # tfds raises what it likes
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
            raise ValueError(
                f"{path} cannot be read by random access, or has no split {split} ({reason}): pack it "
                "again"
            ) from None
        if missing:
            raise ValueError(f"{path} lacks {missing[0]}: pack it again")
        self.columns = {name: shape[0] for name, shape in _features(path).items() if name in DTYPES}
        self.fingerprint = f"{_made(path).get('fingerprint') or _sha256(path)}/{split}"

    def __len__(self):
        return len(self._source)

    def rows(self, indices):
        """{"tokens" int32, "loss_mask" int8, for documents and rows "segment" int32}, each [n, block + 1]."""
        examples = self._source.__getitems__([int(i) for i in indices])
        empty = [np.zeros((0, width)) for width in self.columns.values()]
        columns = (
            [np.stack([e[name] for e in examples]) for name in self.columns] if examples else empty
        )
        return {name: x.astype(DTYPES[name], copy=False) for name, x in zip(self.columns, columns)}


def _features(path):
    """{name: shape, a list} of the arrays of a TFDS directory."""
    try:
        features = json.loads((path / "features.json").read_text(encoding="utf-8"))["featuresDict"][
            "features"
        ]
        return {
            n: [int(d) for d in f["tensor"]["shape"]["dimensions"]]
            for n, f in features.items()
            if "tensor" in f
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_packed(path):
    """Whether `path` is a TFDS directory of tokens and loss masks."""
    return is_tfds(path) and {"tokens", "loss_mask"} <= _features(pathlib.Path(path)).keys()


def _made(path):
    """pack.json of a packed directory; {} where somebody else made it."""
    try:
        return json.loads((path / "pack.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def packed_settings(paths):
    """{"template", "pack", "block"}, as far as known, of the packed directory alone in `paths`; {} for sources."""
    paths = [pathlib.Path(p) for p in paths]
    if len(paths) != 1 or not is_packed(paths[0]):
        return {}
    features, made = _features(paths[0]), _made(paths[0])
    guess = {} if "segment" in features else {"pack": "stream"}
    return (
        guess
        | {k: made[k] for k in ("template", "pack") if k in made}
        | {"block": features["tokens"][0] - 1}
    )


def open_dataset(
    paths,
    tok,
    *,
    template=None,
    pack=None,
    block=None,
    tokens=None,
    eval_fraction=None,
    seed=0,
    max_bad=0.01,
    cache=None,
    workers=None,
):
    """(train, validation or None), each a Dataset, of a packed directory or of sources.

    A packed directory is used as it is: template, pack, block and tokens, where not None, are checked against it, and
    validation is its split of that name, whatever eval_fraction says. Sources are packed first, into the folder `cache`
    (~/.cache/mynah) under the fingerprint of their contents and settings, where a later start finds them; None then
    means the default of `pack`. ValueError, one line, for what the user can mend, such as another tokenizer.
    """
    paths = [pathlib.Path(p) for p in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    packed = [p for p in paths if is_packed(p)]
    if packed and len(paths) > 1:
        raise ValueError(
            f"{packed[0]} is a packed directory, which is used alone: name only it, or pack all sources "
            "together"
        )
    if packed:
        path, made = packed[0], _made(packed[0])
        has = packed_settings(paths) | ({"tokens": made["tokens"] or "all"} if made else {})
        for flag, asked in (
            ("template", template),
            ("pack", pack),
            ("block", block),
            ("tokens", parse_count(tokens)),
        ):
            if asked is not None and asked != has.get(flag, asked):
                raise ValueError(
                    f"--{flag} {asked}, but {path} was packed with {flag} {has[flag]}: leave it out, or "
                    "pack the sources again"
                )
        if made and made["tokenizer"] != tok.fingerprint:
            raise ValueError(
                f"{path} was packed with another tokenizer than {tok.files[0]}: use --tokenizer "
                f"{path / 'tokenizer'}, or pack the sources again"
            )
        if not made:
            note(
                f"{path} does not say which tokenizer made it (no pack.json): it is taken to be {tok.files[0]}"
            )
    else:
        block = 2048 if block is None else block
        sources, made = _recipe(
            paths,
            tok,
            template or "roles",
            pack or "stream",
            block,
            tokens,
            eval_fraction or 0.0,
            seed,
            max_bad,
        )
        path = (
            pathlib.Path(cache or pathlib.Path.home() / ".cache" / "mynah")
            / made["fingerprint"][:24]
        )
        if not path.exists():
            note(f"packing into {path}")
            for line in summary(_pack(sources, made, tok, path, workers)):
                note(line)
    splits = [
        s["name"]
        for s in json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))["splits"]
    ]
    return Dataset(path, "train"), Dataset(path, "validation") if "validation" in splits else None


# ---- the program -----------------------------------------------------------------------------------------------------

# What a terminal acts on or turns text around by, in somebody else's text: controls and bidirectional marks.
CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LOSS, PLAIN = "\033[32m", "\033[0m"


def show(path, row, split="train", tok=None):
    """One row of a packed directory, str: loss tokens in green, controls of the text as escapes (\\x1b), no padding."""
    path = pathlib.Path(path)
    if not is_packed(path):
        raise ValueError(f"{path} is no packed directory: make one with `data.py pack`")
    if tok is None and not (path / "tokenizer").is_dir():
        raise ValueError(f"{path} holds no copy of its tokenizer: name it by --tokenizer")
    tok, made, dataset = (
        tok or tokenizer.load(path / "tokenizer"),
        _made(path),
        Dataset(path, split),
    )
    if made and made["tokenizer"] != tok.fingerprint:
        raise ValueError(
            f"{path} was packed with another tokenizer than {tok.files[0]}: leave --tokenizer out"
        )
    if not 0 <= row < len(dataset):
        raise ValueError(f"--row {row}: {path} has the {split} rows 0 to {len(dataset) - 1}")
    got = {name: x[0] for name, x in dataset.rows([row]).items()}
    ids, mask, segment = (
        got["tokens"],
        got["loss_mask"],
        got.get("segment", np.zeros_like(got["tokens"])),
    )
    n = int(np.flatnonzero(segment if "segment" in got else ids | mask).max(initial=-1)) + 1
    out = [
        f"{split} row {row} of {len(dataset)}: {n} tokens, {mask.sum()} of them loss tokens (green), "
        f"{len(ids) - n} padding\n"
    ]
    cuts = [0, *(np.flatnonzero(np.diff(mask[:n]) | np.diff(segment[:n])) + 1).tolist(), n]
    text = tok.decode_bytes(ids[:n].tolist())
    ends = [
        len(tok.decode_bytes(ids[:cut].tolist())) for cut in cuts
    ]  # a head of the ids gives a head of the bytes
    # on to where a character begins: a row may start inside one
    ends = [
        next(e for e in range(end, len(text) + 1) if text[e : e + 1] < b"\x80" or text[e] >= 0xC0)
        for end in ends
    ]
    for cut, a, b in zip(cuts, ends, ends[1:]):
        if segment[cut] and (not cut or segment[cut] != segment[cut - 1]):
            out.append(f"\n[segment {segment[cut]}]\n")
        part = CONTROLS.sub(lambda m: repr(m[0])[1:-1], text[a:b].decode("utf-8", "replace"))
        out.append(f"{LOSS}{part}{PLAIN}" if mask[cut] else part)
    return "".join(out)


def parser():
    p = argparse.ArgumentParser(
        prog="data.py",
        description="Dialogues -> ids and loss masks -> packed blocks on disk.",
        epilog="data.py pack --help and data.py show --help say more.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="pack|show")
    c = commands.add_parser(
        "pack",
        help="sources -> a packed directory",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Tokenize dialogues, pack them into rows of block + 1 ids with a loss mask: a TFDS directory.",
        epilog="""\
Sources are told apart by content: ShareGPT, chat messages, HC3, Alpaca, Koala, Baize, {"text"} rows, plain text, TFDS
directories; JSON, JSON lines, gzipped or not (`python -m text.dialogues` lists the forms). The paper (arXiv 2305.15717)
packs into blocks of 2048 tokens, loss on the assistant's text only, and compares 0.3M to 150M tokens of the same mix.

example: python data.py pack sharegpt.json.gz hc3/ --tokenizer llama/ --tokens 20M --eval-fraction 0.02 --out mix20M""",
    )
    c.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="files, or folders of them (there plain text counts only where named .txt)",
    )
    c.add_argument(
        "--out", required=True, metavar="DIR", help="the directory to write, whole or not at all"
    )
    g = c.add_argument_group("dialogue -> ids")
    g.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="tokenizer.model, or a folder with one or with vocab.json + merges.txt; DIR gets a copy",
    )
    g.add_argument(
        "--template",
        choices=TEMPLATES,
        default="roles",
        help="roles: special tokens before each turn (the paper's); koala: BEGINNING OF CONVERSATION: USER: "
        "... GPT: as text [default roles]",
    )
    g = c.add_argument_group("ids -> rows")
    g.add_argument(
        "--pack",
        choices=PACKS,
        default="stream",
        help="stream: concatenate and cut (the paper's); documents: whole dialogues side by side where they "
        "fit best, attention within each; rows: one dialogue a row, cut at the block [default stream]",
    )
    g.add_argument(
        "--block",
        type=int,
        default=2048,
        metavar="T",
        help="tokens to predict in a row, which holds T + 1 [default and paper 2048; GPT-2 allows 1024]",
    )
    g = c.add_argument_group("how much, and which")
    g.add_argument(
        "--tokens",
        metavar="N",
        help="tokens of the train split before packing, at most: 300000, 0.3M, 20M; the amounts of one seed "
        "are nested [paper 0.3M to 150M; default all]",
    )
    g.add_argument(
        "--eval-fraction",
        type=float,
        default=0.0,
        metavar="X",
        help="share of the dialogues for the split validation, the same ones for any --tokens [default 0]",
    )
    g.add_argument(
        "--max-bad-rows",
        type=float,
        default=0.01,
        metavar="X",
        help="stop where more than this share of a file's rows is malformed [default 0.01]",
    )
    g.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the dialogues' order and split [default 0]",
    )
    c.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that tokenize; any number gives the same bytes [default: the cores; 1 for small "
        "sources]",
    )
    c = commands.add_parser(
        "show",
        help="print a row, loss tokens coloured",
        description="Print a row of a packed directory, loss tokens in green.",
    )
    c.add_argument("dir", metavar="DIR", help="a packed directory")
    c.add_argument("--row", type=int, default=0, metavar="N", help="from 0 [default 0]")
    c.add_argument(
        "--split", default="train", metavar="NAME", help="train or validation [default train]"
    )
    c.add_argument("--tokenizer", metavar="PATH", help="[default: the copy in DIR/tokenizer]")
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        tok = tokenizer.load(args.tokenizer) if args.tokenizer else None
        if args.command == "show":
            print(show(args.dir, args.row, args.split, tok))
            return 0
        if args.workers is not None and args.workers < 1:
            raise ValueError(f"--workers {args.workers}: at least 1 process has to tokenize")
        made = pack(
            args.sources,
            tok,
            args.out,
            template=args.template,
            pack=args.pack,
            block=args.block,
            tokens=args.tokens,
            eval_fraction=args.eval_fraction,
            seed=args.seed,
            max_bad=args.max_bad_rows,
            workers=args.workers,
        )
        print(*summary(made), f"in {args.out}", sep="\n")
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
    except (ValueError, OSError) as error:
        note(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
