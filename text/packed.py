"""TFDS directories (ArrayRecord): rows of ids written whole, any of them read again by random
access.

For data.py, and for sources in this form (text/sources.py); nothing to run. A directory is somebody
else's until proven ours: its features are built here from a short list of TFDS's own kinds, and no
class or module that a file names is ever imported. Left out: other formats of files than
ArrayRecord, and features other than numbers, texts, and lists of them.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from host import files, terminal
from text import tokenizer

if TYPE_CHECKING:  # at run time it is imported where rows are: --help does without
    import numpy as np

    from text.rows import Row, Spill

# The columns of a packed row, in the order in which they are written.
DTYPES = {"tokens": "int32", "loss_mask": "int8", "segment": "int32"}
SHARD = 1 << 16  # rows a file
NAME = "mynah"  # of the data set, as TFDS wants one
KINDS = {  # TFDS's names of the features that are read
    "tensorflow_datasets.core.features." + name: name.split(".")[1]
    for name in (
        "features_dict.FeaturesDict",
        "sequence_feature.Sequence",
        "text_feature.Text",
        "tensor_feature.Tensor",
        "scalar.Scalar",
    )
}
NUMBERS = (
    "bool",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
    "float32",
    "float64",
)
DEEPEST = 8  # features within features


# --- writing ---


def write_rows(folder: pathlib.Path, split: str, rows: "Iterable[Row]") -> list[int]:
    """Write the rows of one split into files of SHARD rows -> how many each file holds."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    shards, writer = [], None
    for row, segment in rows:
        if writer is None or shards[-1] == SHARD:
            if writer:
                _said(writer.close)
            # group_size 1: a record is read without its neighbours.
            path = str(folder / f"{split}-{len(shards)}")
            writer = _said(ArrayRecordWriter, path, "group_size:1")
            shards.append(0)
        example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
        for name, values in zip(DTYPES, (row >> 1, row & 1, segment), strict=True):
            if values is not None:
                example.features.feature[name].int64_list.value.extend(values.tolist())
        _said(writer.write, example.SerializeToString(deterministic=True))
        shards[-1] += 1
    if writer:
        _said(writer.close)
    for i, name in enumerate(_shard_names(NAME, split, len(shards))):
        os.rename(folder / f"{split}-{i}", folder / name)
    return shards


def write_split(
    folder: pathlib.Path, split: str, spill: "Spill", chosen: "np.ndarray", pack: str, block: int
) -> dict[str, Any]:
    """Write the rows of the dialogues `chosen`; returns its counts, and the rows of each file.

    Padding has id, mask and segment 0.
    """
    import numpy as np

    from text.rows import document_rows, single_rows, stream_rows

    n, read = spill.lengths[chosen], spill.read
    longer, total = int((n > block + 1).sum()), int(n.sum())
    counts = {"rows": 0, "dialogues": len(chosen), "tokens": total, "loss_tokens": 0}
    if pack == "stream":
        filled, expected = stream_rows(read, chosen, block), -(-(total - 1) // block)
    elif pack == "documents":
        filled = document_rows(read, chosen, spill.lengths, block)
        expected = -(-total // (block + 1))
        counts["dialogues longer than the block (go on in another row)"] = longer
    else:
        filled, expected = single_rows(read, chosen, block), len(chosen)
        counts["dialogues longer than the block (cut)"] = longer
        counts["tokens cut off"] = int(np.maximum(n - block - 1, 0).sum())
        counts["dialogues without a loss token before the cut (skipped)"] = 0
    progress = terminal.Progress(f"writing {split}", expected, "rows")

    def counted():
        for row in filled:
            if row is None:
                counts["dialogues without a loss token before the cut (skipped)"] += 1
                continue
            yield row
            counts["rows"] += 1
            counts["loss_tokens"] += int((row[0] & 1).sum())
            progress(counts["rows"])

    shards = write_rows(folder, split, counted())
    progress.close()
    if not shards:
        raise ValueError(
            f"{split}: none of its {len(chosen):,} dialogues has a loss token within --block "
            f"{block}: use a longer one"
        )
    names = _shard_names(NAME, split, len(shards))
    return counts | {"shards": shards, "sha256": [files.sha256(folder / n) for n in names]}


def _said(write, *args):
    """write(*args); the library's error, a RuntimeError of several lines, as an OSError of one."""
    try:
        return write(*args)
    except RuntimeError as error:
        reason = str(error).split(";")[0].splitlines()[0]
        raise OSError(f"rows cannot be written ({reason}): make room, then try again") from None


def write_metadata(
    folder: pathlib.Path, columns: Sequence[str], width: int, shards: dict[str, list[int]]
) -> None:
    """What makes the folder a TFDS directory: dataset_info.json and features.json."""
    import numpy as np
    import tensorflow_datasets as tfds

    features = {
        name: tfds.features.Tensor(shape=(width,), dtype=np.dtype(DTYPES[name]).type)
        for name in columns
    }
    names = tfds.core.ShardedFileTemplate(
        tfds.core.Path(folder), dataset_name=NAME, filetype_suffix="array_record"
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=lengths,
            num_bytes=sum(f.stat().st_size for f in folder.glob(f"{NAME}-{split}.*")),
            filename_template=names.replace(split=split),
        )
        for split, lengths in shards.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=tfds.features.FeaturesDict(features),
        split_infos=splits,
        check_data=False,
    )


def _shard_names(name, split, shards):
    return [f"{name}-{split}.array_record-{i:05d}-of-{shards:05d}" for i in range(shards)]


# --- reading ---


def is_tfds(path: str | os.PathLike) -> bool:
    """Whether the folder is a TFDS directory (of one version)."""
    path = pathlib.Path(path)
    return (path / "dataset_info.json").is_file() and (path / "features.json").is_file()


def is_packed(path: str | os.PathLike) -> bool:
    """Whether `path` is a TFDS directory of tokens and loss masks."""
    return is_tfds(path) and {"tokens", "loss_mask"} <= widths(path).keys()


def widths(path: str | os.PathLike) -> dict[str, int]:
    """{name: length} of a TFDS directory's arrays of one dimension; {} where it has none."""
    try:
        described = files.read_json(pathlib.Path(path) / "features.json")
        return {
            name: int(feature["tensor"]["shape"]["dimensions"][0])
            for name, feature in described["featuresDict"]["features"].items()
            if len(feature.get("tensor", {}).get("shape", {}).get("dimensions", ())) == 1
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def record(path: str | os.PathLike) -> dict[str, Any]:
    """pack.json of a packed directory: how it was made; {} where somebody else made it."""
    path = pathlib.Path(path) / "pack.json"
    try:
        made = files.read_json(path)
    except FileNotFoundError:
        return {}
    kinds = {"fingerprint": str, "tokenizer": str, "splits": dict, "tokens": int | None}
    for key, kind in kinds.items():
        if key not in made or not isinstance(made[key], kind):
            raise ValueError(f"{path} does not say its {key}: copy the directory again")
    if not all(isinstance(counts, dict) for counts in made["splits"].values()):
        raise ValueError(f"{path} does not describe its splits: copy the directory again")
    return made


def splits(path: str | os.PathLike) -> dict[str, list[pathlib.Path]]:
    """{split: its files in order}, as dataset_info.json says; ValueError where it says nothing."""
    path = pathlib.Path(path)
    info = files.read_json(path / "dataset_info.json")
    try:
        if info.get("fileFormat") != "array_record":
            raise ValueError(
                f"{path} holds files of the format {info.get('fileFormat')}, which random access "
                "does not reach: write it with file_format=array_record"
            )
        found = {s["name"]: _split_files(path, info["name"], s) for s in info["splits"]}
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}/dataset_info.json lists no splits: copy it again") from None
    return found


def _split_files(path, name, split):
    count = len(split.get("shardLengths", ()))
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    names = (name, split["name"], re.sub("[{}]", "", template))
    if not all(isinstance(n, str) and re.fullmatch(r"[\w.-]+", n) for n in names):
        raise ValueError(f"{path}/dataset_info.json names files outside its folder: refused")
    if template != "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}":
        raise ValueError(f"{path} names its files {template}, which is not read: pack it again")
    return [path / file for file in _shard_names(name, split["name"], count)]


def summary(made: dict[str, Any]) -> Iterator[str]:
    """What a packing made and skipped, lines of text."""

    def others(counts):
        yield from (f"{'':<11}{n:>9,} {what}" for what, n in counts.items() if " " in what and n)

    for split, c in made["splits"].items():
        yield (
            f"{split:<11}{c['rows']:>9,} rows of {made['block']:,}, {c['dialogues']:,} dialogues, "
            f"{c['tokens']:,} tokens, {c['loss_tokens']:,} loss tokens "
            f"({c['loss_tokens'] / c['tokens']:.1%})"
        )
        yield from others(c)
    c = made["counts"]
    yield (
        f"{'read':<11}{c['rows']:>9,} rows, {c['dialogues']:,} dialogues, {c['malformed']:,} "
        "malformed rows (skipped)"
    )
    yield from others(c)


class Records:
    """The examples of one split of a TFDS directory, each a dict as its features say.

    len(); items(indices) -> list. ValueError, one line, for what cannot be read, and for a
    directory that names features other than KINDS: a name that TFDS does not know is one that it
    would import.
    """

    def __init__(self, path: str | os.PathLike, split: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.path, self.split = pathlib.Path(path), split
        self._parse = _parser(self.path)
        found = splits(self.path)
        if split not in found:
            raise ValueError(f"{path} has no split {split}: it has {', '.join(found) or 'none'}")
        for file in found[split]:
            if not file.exists():
                raise ValueError(f"{path} lacks {file.name}: pack it again, or copy it too")
        try:
            self._source = ArrayRecordDataSource([str(f) for f in found[split]])
        except Exception as error:  # the library raises what it likes
            raise ValueError(f"{path}, {split}: {_first_line(error)}: pack it again") from None

    def __len__(self) -> int:
        return len(self._source)

    def items(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """The examples of these numbers, in their order."""
        indices = [int(i) for i in indices]
        if not indices:
            return []  # which the library does not take
        try:
            return [self._parse(r) for r in self._source.__getitems__(indices)]
        except Exception as error:
            where = f"{self.path}, {self.split} rows {min(indices)} to {max(indices)}"
            raise ValueError(
                f"{where} cannot be read ({_first_line(error)}): pack it again"
            ) from None


def _first_line(error):
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def _parser(path) -> Any:
    import tensorflow_datasets as tfds

    features = _features(files.read_json(path / "features.json"), path / "features.json", 0)
    if not isinstance(features, tfds.features.FeaturesDict):
        raise ValueError(f"{path}/features.json describes no dict of features: copy it again")
    return features.deserialize_example_np


def _features(described, where, depth):
    """TFDS's feature for a piece of features.json; TFDS itself would import the class it names."""
    import numpy as np
    import tensorflow_datasets as tfds

    kinds = tfds.features
    name = described.get("pythonClassName") if isinstance(described, dict) else None
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or depth > DEEPEST:
        shown = json.dumps(name)[:80]
        raise ValueError(
            f"{where} names the feature {shown}, read are only {', '.join(KINDS.values())} of "
            "TFDS: a class that a file names is not run; write the data as JSON lines instead"
        )
    try:
        if kind == "FeaturesDict":
            inner = described["featuresDict"]["features"].items()
            return kinds.FeaturesDict({k: _features(f, where, depth + 1) for k, f in inner})
        if kind == "Sequence":
            inner, length = described["sequence"]["feature"], int(described["sequence"]["length"])
            return kinds.Sequence(
                _features(inner, where, depth + 1), length if length >= 0 else None
            )
        if kind == "Text":
            return kinds.Text()
        tensor = described["tensor"]
        if tensor["dtype"] not in (*NUMBERS, "string") or tensor.get("encoding", "none") != "none":
            raise ValueError(
                f"{where}: numbers of type {tensor['dtype']} are not read: copy it again"
            )
        dtype = np.object_ if tensor["dtype"] == "string" else np.dtype(tensor["dtype"]).type
        shape = tuple(int(d) for d in tensor["shape"].get("dimensions", ()))
        return kinds.Tensor(shape=tuple(d if d >= 0 else None for d in shape), dtype=dtype)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{where} does not describe its {kind} as TFDS does: copy it again"
        ) from None


class Dataset:
    """The rows of one split of a packed directory, by random access; none of them stays in memory.

    len(); columns {name: ids a row}; fingerprint (str: of what made the directory, and the split).
    ValueError where a file is another than the one that pack.json tells of, and at a row that holds
    an id of `vocabulary` (its size) or more.
    """

    def __init__(self, path: str | os.PathLike, split: str, vocabulary: int = 2**31):
        self.path, self.split, self.vocabulary = pathlib.Path(path), split, vocabulary
        self._records = Records(path, split)
        self.columns = {name: n for name, n in widths(path).items() if name in DTYPES}
        self.fingerprint = f"{_verified(self.path, split)}/{split}"

    def __len__(self) -> int:
        return len(self._records)

    def rows(self, indices: Iterable[int]) -> "dict[str, np.ndarray]":
        """{"tokens" int32, "loss_mask" int8, and "segment" int32 where packed so}, [n, block +
        1]."""
        import numpy as np

        indices = [int(i) for i in indices]
        examples, columns = self._records.items(indices), {}
        for name, width in self.columns.items():
            values = np.array([example[name] for example in examples]).reshape(-1, width)
            self._check(name, values, indices)
            columns[name] = values.astype(DTYPES[name], copy=False)
        return columns

    def _check(self, name, values, indices):
        """ValueError that names the first row whose values cannot be what the column is."""
        import numpy as np

        end = {"tokens": self.vocabulary, "loss_mask": 2}.get(name, 2**31)
        wrong = np.argwhere((values < 0) | (values >= end) | (values != np.floor(values)))
        if len(wrong):
            row, at = wrong[0].tolist()
            what = {"tokens": "id", "loss_mask": "loss mask"}.get(name, name)
            raise ValueError(
                f"{self.path}, {self.split} row {indices[row]}: {what} {values[row, at]} at place "
                f"{at} is not in 0 to {end - 1}: use its own tokenizer, or pack again"
            )

    def check(self, most: int = 10_000) -> None:
        """Read the first rows, at most `most`: ValueError where one cannot be trained on."""
        for start in range(0, min(len(self), most), 256):
            self.rows(range(start, min(start + 256, len(self), most)))


def _verified(path, split):
    """The fingerprint of a directory whose files are those that pack.json was written for."""
    made = record(path)
    if not made:
        return files.sha256(path)
    shards = splits(path)[split]
    digests, said = [files.sha256(f) for f in shards], made["splits"].get(split, {}).get("sha256")
    if said is None:  # packed before digests were kept
        return f"{made['fingerprint']}+{'+'.join(digests)}"
    for file, digest, expected in zip_longest(shards, digests, said):
        if digest != expected:
            name = file.name if file else f"a file of {split}"
            raise ValueError(
                f"{path}: {name} is not what was packed there (pack.json): copy the directory "
                "again, or pack again"
            )
    return made["fingerprint"]


def plain(value: Any) -> Any:
    """What TFDS gives, as JSON would: str for bytes, lists for arrays, a list of dicts for turns.

    TFDS gives a sequence of dicts as a dict of columns.
    """
    if isinstance(value, dict):
        value = {k: plain(v) for k, v in value.items()}
        columns = list(value.values())
        turns = set(value) <= {"from", "value", "role", "content"}
        if columns and turns and all(isinstance(c, list) for c in columns):
            return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    listed = hasattr(value, "__len__") and not isinstance(value, str)
    return [plain(v) for v in value] if listed else value


# --- showing ---

LOSS, PLAIN = "\033[32m", "\033[0m"


def show(
    path: str | os.PathLike,
    number: int,
    split: str = "train",
    tok: tokenizer.Tokenizer | None = None,
) -> str:
    """One row of a packed directory without its padding: loss tokens green, controls as escapes."""
    import numpy as np

    path = pathlib.Path(path)
    if not is_packed(path):
        raise ValueError(f"{path} is no packed directory: make one with `data.py pack`")
    if tok is None and not (path / "tokenizer").is_dir():
        raise ValueError(f"{path} holds no copy of its tokenizer: name it by --tokenizer")
    tok, made = tok or tokenizer.load(path / "tokenizer"), record(path)
    dataset = Dataset(path, split, tok.size)
    if made and made["tokenizer"] != tok.fingerprint:
        raise ValueError(
            f"{path} was packed with another tokenizer than {tok.files[0]}: leave --tokenizer out"
        )
    if not 0 <= number < len(dataset):
        raise ValueError(f"--row {number}: {path} has the {split} rows 0 to {len(dataset) - 1}")
    row = {name: x[0] for name, x in dataset.rows([number]).items()}
    ids, mask = row["tokens"], row["loss_mask"]
    filled = np.flatnonzero(row["segment"] if "segment" in row else ids | mask)
    n = int(filled.max(initial=-1)) + 1
    head = (
        f"{split} row {number} of {len(dataset)}: {n} tokens, {mask.sum()} of them loss tokens "
        f"(green), {len(ids) - n} padding\n"
    )
    segment = row.get("segment", np.zeros_like(ids))
    return "".join([head, _coloured(ids[:n], mask[:n], segment[:n], tok)])


def _coloured(ids, mask, segment, tok):
    import numpy as np

    cuts = [0, *(np.flatnonzero(np.diff(mask) | np.diff(segment)) + 1).tolist(), len(ids)]
    text, parts = tok.decode_bytes(ids.tolist()), []
    # A head of the ids gives a head of the bytes, on to where a character begins: a row may start
    # inside one.
    ends = [len(tok.decode_bytes(ids[:cut].tolist())) for cut in cuts]
    begins = [text[i : i + 1] < b"\x80" or text[i] >= 0xC0 for i in range(len(text) + 1)]
    ends = [begins.index(True, end) for end in ends]
    for cut, a, b in zip(cuts, ends, ends[1:], strict=False):
        if segment[cut] and (not cut or segment[cut] != segment[cut - 1]):
            parts.append(f"\n[segment {segment[cut]}]\n")
        part = terminal.printable(text[a:b].decode("utf-8", "replace"))
        parts.append(f"{LOSS}{part}{PLAIN}" if mask[cut] else part)
    return "".join(parts)
