"""Dialogues -> ids and loss mask -> packed rows on disk -> the batch of step s.

    python data.py pack SOURCE... --tokenizer T --out DIR      # then: python train.py --data DIR
    python data.py show DIR --row 3                            # one row, its loss tokens coloured

The packed directory is a TFDS directory (ArrayRecord), read by random access:
`tfds.builder_from_directory(DIR).as_data_source("train")[i]` is {"tokens": int32 [block + 1],
"loss_mask": int8 [block + 1]}, with "segment": int32 [block + 1] for the packings documents and
rows. Beside the rows lie pack.json (how it was made) and a copy of the tokenizer. What a row of a
source may look like: text/dialogues.py; how rows are filled, and in what order: text/rows.py; how
they are written and read: text/packed.py. Left out: cleaning and filtering (study), resuming a
packing that was killed (it starts over; nothing half-written is ever under DIR).
"""

import sys

from text.pack_flags import PACKS, TEMPLATES, parser

if __name__ == "__main__":  # before NumPy is imported, which costs more than --help should
    parser().parse_args()

import dataclasses
import fractions
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from host import files, terminal
from text import packed, rows, templates, tokenizer
from text.dialogues import Dialogue
from text.packed import Dataset, is_packed, show, summary
from text.sources import source_files
from text.spill import spill

LONGEST_BLOCK = 1 << 24
FORMAT = 2  # of the packed directory: raise it when the same sources and settings give other rows

Paths = Iterable[str | os.PathLike]


# --- dialogue -> ids and mask ---


def tokenize_dialogue(
    dialogue: Dialogue, tok: tokenizer.Tokenizer, template: str = "roles"
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32 [n], loss_mask int8 [n]) of a dialogue, mask 1 on what is to be predicted.

    The templates are those of text/templates.py.
    """
    ids, mask = templates.write(dialogue, tok, template)
    return np.array(ids, np.int32), np.array(mask, np.int8)


# --- the batch of a step ---


def batch_indices(n_rows: int, batch: int, seed: int, step: int) -> np.ndarray:
    """Rows of the batch of step `step` (from 1), int64 [batch].

    The epochs' shuffles end to end, cut into batches: a function of its arguments alone. Each epoch
    visits every row once, and nothing is dropped at its end.
    """
    return _take(n_rows, seed, (step - 1) * batch, batch)


def _take(n, seed, start, count):
    at = range(start, start + count)
    return np.array([_epoch(n, seed, i // n)[i % n] for i in at], np.int64)


@functools.lru_cache(4)
def _epoch(n, seed, epoch):
    return rows.shuffled(n, seed, 2, epoch)


def mixed(
    main: Dataset, extra: Dataset, batch: int, fraction: float, seed: int, step: int
) -> tuple[Any, np.ndarray]:
    """(read, indices [batch]) of step `step`, the share `fraction` of its rows from the data set
    `extra`.

    read(indices) -> as Dataset.rows; indices from len(main) on are rows of `extra`. Of the first s
    steps, floor(s * batch * fraction) rows come from extra: the share is exact in the long run.
    Each data set goes through epochs of its own.
    """
    if main.columns != extra.columns:
        raise ValueError(
            f"--data and --mix are packed differently (ids a row: {main.columns} and "
            f"{extra.columns}): use the same --pack and --block"
        )
    share = fractions.Fraction(fraction).limit_denominator(10**6)
    before, after = int((step - 1) * batch * share), int(step * batch * share)
    own_rows = _take(len(main), seed, (step - 1) * batch - before, batch - (after - before))
    other_rows = _take(len(extra), seed, before, after - before) + len(main)

    def read(wanted):
        own = wanted < len(main)
        a, b = main.rows(wanted[own]), extra.rows(wanted[~own] - len(main))
        at = np.argsort(np.argsort(~own, kind="stable"), kind="stable")
        return {name: np.concatenate([a[name], b[name]])[at] for name in a}

    return read, np.concatenate([own_rows, other_rows])


# --- sources -> a packed directory ---


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How dialogues become rows."""

    template: str = "roles"
    pack: str = "stream"
    block: int = 2048  # tokens to predict in a row
    tokens: int | None = None  # of the train split before packing, at most; None: all
    eval_fraction: float = 0.0  # of the dialogues, for the split validation
    seed: int = 0
    max_bad: float = 0.01  # share of a file's rows that may be malformed


def _recipe(settings, tok):
    """The Recipe of settings, some of which may be None; ValueError for values that cannot be."""
    r = Recipe(**{k: v for k, v in settings.items() if v is not None})
    for flag, value, known in (("template", r.template, TEMPLATES), ("pack", r.pack, PACKS)):
        if value not in known:
            raise ValueError(f"--{flag} {value} is unknown: use {' or '.join(known)}")
    if r.block < 1:
        raise ValueError(f"--block {r.block} is no length: a row predicts at least 1 token")
    if r.block > LONGEST_BLOCK:
        raise ValueError(
            f"--block {r.block} is longer than any model reads: use at most {LONGEST_BLOCK:,}"
        )
    if not 0 <= r.eval_fraction < 1:
        raise ValueError(
            f"--eval-fraction {r.eval_fraction:g} is not in 0 <= x < 1: 0.02 holds out 2 % of the "
            "dialogues"
        )
    if not 0 <= r.max_bad <= 1:
        raise ValueError(
            f"--max-bad-rows {r.max_bad:g} is not in 0 to 1: 0.01 stops where over 1 % of a file "
            "is bad"
        )
    templates.needed(tok, r.template)  # says which token is missing
    return dataclasses.replace(r, tokens=terminal.count(r.tokens))


def pack(
    paths: Paths,
    tok: tokenizer.Tokenizer,
    out: str | os.PathLike,
    workers: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Write the packed directory `out`, whole or not at all; returns what its pack.json holds.

    settings: the fields of Recipe. Of the dialogues, shuffled by the seed, validation is split off
    first, whatever `tokens` is; train is the longest head of the rest with at most `tokens` tokens
    before packing, so that a smaller amount is a subset of a larger one (a dialogue stays whole; a
    plain text is cut to fit). The bytes written depend on the sources and settings, not on the
    number of workers (processes; None: by size). Where `out` is there and was made from the same,
    nothing is done. ValueError, one line, for what the user can mend.
    """
    files.check_place(out)
    return _plan(paths, tok, _recipe(settings, tok)).run(pathlib.Path(out), workers)


def _plan(paths, tok, recipe):
    """The _Packing of these sources; each is read once, for the fingerprint of all that rows depend
    on."""
    sources, passed = source_files(paths)
    for source in sources:
        if is_packed(source):
            raise ValueError(
                f"{source} is packed already: give it to train.py --data as it is, alone"
            )
    for path in passed:
        note(f"{path} is no data (JSON, JSON lines, .txt): passed over")
    names = ("template", "pack", "block", "tokens", "eval_fraction", "seed")
    record = {"format": FORMAT} | {name: getattr(recipe, name) for name in names}
    record |= {"vocabulary": tok.size, "tokenizer": tok.fingerprint}
    digests = [files.sha256(s) for s in sources]
    text = json.dumps(record | {"sources": digests}, sort_keys=True)
    named = [
        {"name": s.name, "bytes": s.stat().st_size, "sha256": digest}
        for s, digest in zip(sources, digests, strict=True)
    ]
    record |= {"max_bad_rows": recipe.max_bad, "sources": named}
    record |= {"fingerprint": hashlib.sha256(text.encode()).hexdigest()}
    return _Packing(sources, recipe, tok, record)


@dataclasses.dataclass(frozen=True)
class _Packing:
    """What is packed, and by which recipe; `record` is what pack.json says of it beforehand."""

    sources: list[pathlib.Path]
    recipe: Recipe
    tok: tokenizer.Tokenizer
    record: dict[str, Any]

    def run(self, out: pathlib.Path, workers: int | None) -> dict[str, Any]:
        """Fill `out`, or find it filled; returns its pack.json."""
        with files.folder_once(out) as folder:
            if folder is None:
                record = packed.record(out)
                if record.get("fingerprint") != self.record["fingerprint"]:
                    raise ValueError(
                        f"{out} exists and was not made from these sources and settings: remove "
                        "it, or name another --out"
                    )
                return record
            if self.tok.warning:
                note(self.tok.warning)
            record = self.record | self._fill(folder, workers)
            self.tok.save(folder / "tokenizer")
            (folder / "pack.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return record

    def _fill(self, folder, workers):
        """Write all splits, and what makes the folder a TFDS directory; returns the counts."""
        r = self.recipe
        encode = functools.partial(tokenize_dialogue, template=r.template)
        all_ids = spill(self.sources, self.tok, encode, folder / "spill", r.max_bad, workers)
        if not len(all_ids.lengths):
            raise ValueError(
                f"none of the {all_ids.counts['rows']:,} rows holds an answer to learn from: name "
                "other sources"
            )
        held = rows.split_off(all_ids.keys, r.eval_fraction, r.seed)
        order = rows.shuffled(len(all_ids.lengths), r.seed, 0)
        train, validation = order[~held[order]], order[held[order]]
        if r.tokens:
            train = _longest_head(all_ids, train, r)
        chosen = {"train": train} | ({"validation": validation} if len(validation) else {})
        splits = {
            split: packed.write_split(folder, split, all_ids, numbers, r.pack, r.block)
            for split, numbers in chosen.items()
        }
        all_ids.path.unlink()
        columns = [name for name in packed.DTYPES if name != "segment" or r.pack != "stream"]
        shards = {split: c["shards"] for split, c in splits.items()}
        packed.write_metadata(folder, columns, r.block + 1, shards)
        return {"counts": dict(all_ids.counts), "splits": splits}


def _longest_head(all_ids, train, recipe):
    """The first dialogues of `train` with at most recipe.tokens tokens; a text is cut to fit."""
    lengths = all_ids.lengths
    total = np.cumsum(lengths[train])
    n = int(np.searchsorted(total, recipe.tokens, "right"))
    left = recipe.tokens - int(total[n - 1] if n else 0)
    if n < len(train) and left > 1 and all_ids.read(train[n])[1] & 1:
        # loss from the second id on: a text
        lengths[train[n]] = left
        n += 1
    if not n:
        raise ValueError(
            f"--tokens {recipe.tokens:,} is less than the {lengths[train[0]]:,} of the first "
            f"dialogue by --seed {recipe.seed}: ask for more"
        )
    if total[-1] < recipe.tokens:
        note(
            f"WARNING: --tokens {recipe.tokens:,}, but there are only {total[-1]:,}: all are taken"
        )
    return train[:n]


def note(text: object) -> None:
    terminal.say(f"data.py: {text}")


# --- a packed directory, or sources -> rows ---


def packed_settings(paths: Paths) -> dict[str, Any]:
    """{"template", "pack", "block"}, as far as known, of the one packed directory in `paths`, else
    {}."""
    paths = [pathlib.Path(p) for p in paths]
    if len(paths) != 1 or not is_packed(paths[0]):
        return {}
    widths, record = packed.widths(paths[0]), packed.record(paths[0])
    guess = {} if "segment" in widths else {"pack": "stream"}
    known = {k: record[k] for k in ("template", "pack") if k in record}
    return guess | known | {"block": widths["tokens"] - 1}


def open_dataset(
    paths: str | os.PathLike | Paths,
    tok: tokenizer.Tokenizer,
    cache: str | os.PathLike | None = None,
    workers: int | None = None,
    **settings: Any,
) -> tuple[Dataset, Dataset | None]:
    """(train, validation or None) of a packed directory or of sources; settings: the fields of
    Recipe.

    A packed directory is used as it is: template, pack, block and tokens, where not None, are
    checked against it, and validation is its split of that name, whatever eval_fraction says.
    Sources are packed first, into the folder `cache` (~/.cache/mynah) under the fingerprint of
    their contents and settings, where a later start finds them. ValueError, one line, for what the
    user can mend, such as another tokenizer.
    """
    paths = [pathlib.Path(p) for p in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    directories = [p for p in paths if is_packed(p)]
    if directories and len(paths) > 1:
        raise ValueError(
            f"{directories[0]} is a packed directory, which is used alone: name only it, or pack "
            "all sources together"
        )
    if directories:
        path = directories[0]
        _check_same(path, tok, settings)
    else:
        packing = _plan(paths, tok, _recipe(settings, tok))
        cache = pathlib.Path(cache or pathlib.Path.home() / ".cache" / "mynah")
        path = cache / packing.record["fingerprint"][:24]
        if not path.exists():
            note(f"packing into {path}")
            for line in summary(packing.run(path, workers)):
                note(line)
    names = ["train", *(name for name in packed.splits(path) if name == "validation")]
    datasets = [Dataset(path, name, tok.size) for name in names]
    if not packed.record(path):
        for dataset in datasets:
            dataset.check()
    return datasets[0], datasets[1] if len(datasets) > 1 else None


def _check_same(path, tok, settings):
    """ValueError where a packed directory was made otherwise than by these settings and
    tokenizer."""
    record = packed.record(path)
    has = packed_settings([path]) | ({"tokens": record["tokens"] or "all"} if record else {})
    wanted = settings | {"tokens": terminal.count(settings.get("tokens"))}
    for flag in ("template", "pack", "block", "tokens"):
        value = wanted.get(flag)
        if value is not None and value != has.get(flag, value):
            raise ValueError(
                f"--{flag} {value}, but {path} was packed with {flag} {has[flag]}: leave it out, "
                "or pack the sources again"
            )
    if not record:
        note(
            f"{path} does not say which tokenizer made it (no pack.json): it is taken to be "
            f"{tok.files[0]}"
        )
    elif record["tokenizer"] != tok.fingerprint:
        raise ValueError(
            f"{path} was packed with another tokenizer than {tok.files[0]}: use --tokenizer "
            f"{path / 'tokenizer'}, or pack the sources again"
        )


# --- the program ---


def main(argv: list[str] | None = None) -> int:
    return terminal.program(lambda: _main(argv), "data.py")


def _main(argv):
    args = parser().parse_args(argv)
    if args.command == "show":
        tok = tokenizer.load(args.tokenizer) if args.tokenizer else None
        print(show(args.dir, args.row, args.split, tok))
        return
    tok = tokenizer.load(args.tokenizer)
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers {args.workers}: at least 1 process has to tokenize")
    settings = {f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe)}
    record = pack(args.sources, tok, args.out, args.workers, **settings)
    print(*summary(record), f"in {args.out}", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
