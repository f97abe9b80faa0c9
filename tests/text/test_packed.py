"""packed.py: a TFDS directory is data: nothing in it is run, what was not packed is named."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import data
from text import packed, tokenizer
from text.dialogues import read_dialogues

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOK = ROOT / "samples" / "tokenizer.model"


@pytest.fixture(scope="module")
def tok():
    return tokenizer.load(TOK)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "talk.jsonl"
    rows = [
        {"prompt": f"question {i}", "completion": f"answer {i} " * (i % 9 + 1)} for i in range(90)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def foreign(path, rows, features=None):
    """A TFDS directory that somebody else wrote: {name: list of arrays} of one split."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    path.mkdir(exist_ok=True)
    if features is None:
        [(_, first), *_] = rows.items()
        shape = (len(first[0]),)
        features = {n: tfds.features.Tensor(shape=shape, dtype=np.int64) for n in rows}
    features = tfds.features.FeaturesDict(features)
    name = str(path / "theirs-train.array_record-00000-of-00001")
    writer = ArrayRecordWriter(name, "group_size:1")
    n = len(next(iter(rows.values())))
    for i in range(n):
        example = features.encode_example({name: column[i] for name, column in rows.items()})
        writer.write(features.serialize_example(example))
    writer.close()
    template = tfds.core.ShardedFileTemplate(
        path, dataset_name="theirs", split="train", filetype_suffix="array_record"
    )
    info = tfds.core.SplitInfo(
        name="train", shard_lengths=[n], num_bytes=0, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(path), features=features, split_infos=[info], check_data=False
    )
    return path


# --- nothing in it is run ---


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module whose import leaves a mark; the mark's path."""
    (tmp_path / "trap").mkdir()
    mark = tmp_path / "mark"
    (tmp_path / "trap" / "sprung.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path / "trap"))
    yield mark
    sys.modules.pop("sprung", None)


NAMES = ["sprung.Feature", "sprung", "os.system", "", None, 3, [], "tensorflow_datasets.x.Sprung"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["top", "tokens", "beside"])
def test_a_class_that_features_json_names_is_not_looked_for(
    tmp_path, tok, source, trap, name, where
):
    data.pack([source], tok, tmp_path / "packed", block=64)
    path = tmp_path / "packed" / "features.json"
    features = json.loads(path.read_text())
    inner = features["featuresDict"]["features"]
    inner["extra"] = json.loads(json.dumps(inner["tokens"]))
    {"top": features, "tokens": inner["tokens"], "beside": inner["extra"]}[where][
        "pythonClassName"
    ] = name
    path.write_text(json.dumps(features))
    for use in (
        lambda: data.open_dataset([tmp_path / "packed"], tok),
        lambda: data.show(tmp_path / "packed", 0),
        lambda: list(read_dialogues(tmp_path / "packed")),
    ):
        with pytest.raises(ValueError) as error:
            use()
        assert "\n" not in str(error.value) and not trap.exists()


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_a_nested_class_is_not_looked_for_either(tmp_path, trap, depth):
    import tensorflow_datasets as tfds

    turns = tfds.features.Sequence({"from": tfds.features.Text(), "value": tfds.features.Text()})
    rows = {
        "conversations": [[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]] * 2
    }
    folder = foreign(tmp_path / "talk", rows, {"conversations": turns})
    assert len(list(read_dialogues(folder))) == 2
    features = json.loads((folder / "features.json").read_text())
    sequence = features["featuresDict"]["features"]["conversations"]
    bad = {"pythonClassName": "sprung.Feature", "text": {}}
    for _ in range(depth):
        inner = {"feature": bad, "length": "-1"}
        bad = {"pythonClassName": sequence["pythonClassName"], "sequence": inner}
    features["featuresDict"]["features"]["conversations"] = bad
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match="names the feature"):
        list(read_dialogues(folder))
    assert not trap.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc"},
        {"splits": [{"name": "../train", "shardLengths": ["1"]}]},
        {"splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "/etc/{SPLIT}"}]},
        {"splits": 3},
        {"splits": [3]},
        {"fileFormat": "tfrecord"},
        {"splits": []},
    ],
)
def test_a_directory_that_describes_itself_wrongly_is_one_line(tmp_path, tok, source, change):
    data.pack([source], tok, tmp_path / "packed", block=64)
    path = tmp_path / "packed" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError) as error:
        data.open_dataset([tmp_path / "packed"], tok)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "pack.json"])
@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", "{", "{}", "3", '{"splits": {}}', "\ud800"]
)
def test_damaged_descriptions_are_one_line(tmp_path, tok, source, name, content, capsys):
    data.pack([source], tok, tmp_path / "packed", block=64)
    (tmp_path / "packed" / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    capsys.readouterr()
    assert data.main(["show", str(tmp_path / "packed")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- it is what was packed ---


@pytest.fixture
def shards(tmp_path, tok, source, monkeypatch):
    monkeypatch.setattr(packed, "SHARD", 5)
    data.pack([source], tok, tmp_path / "packed", block=32, eval_fraction=0.1)
    files = sorted((tmp_path / "packed").glob("mynah-train.*"))
    assert len(files) > 2
    return files


def test_swapped_record_files_are_noticed(tmp_path, tok, shards):
    before, _ = data.open_dataset([tmp_path / "packed"], tok)
    shards[0].rename(tmp_path / "aside")
    shards[1].rename(shards[0])
    (tmp_path / "aside").rename(shards[1])
    with pytest.raises(ValueError, match=f"{shards[0].name} is not what was packed there"):
        data.open_dataset([tmp_path / "packed"], tok)
    assert before.fingerprint


def test_another_packing_under_the_same_description_is_noticed(tmp_path, tok, source, shards):
    data.pack([source], tok, tmp_path / "other", block=32, eval_fraction=0.1, seed=1)
    for file in (tmp_path / "other").glob("mynah-*"):
        shutil.copy(file, tmp_path / "packed")
    with pytest.raises(ValueError, match="is not what was packed there"):
        data.open_dataset([tmp_path / "packed"], tok)


def test_without_digests_the_files_are_part_of_the_fingerprint(tmp_path, tok, shards):
    path = tmp_path / "packed" / "pack.json"
    made = json.loads(path.read_text())
    for counts in made["splits"].values():
        del counts["sha256"]
    path.write_text(json.dumps(made))
    before, _ = data.open_dataset([tmp_path / "packed"], tok)
    again, _ = data.open_dataset([tmp_path / "packed"], tok)
    shutil.copy(shards[0], shards[1])
    after, _ = data.open_dataset([tmp_path / "packed"], tok)
    assert before.fingerprint == again.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    "column, value",
    [("tokens", -1), ("tokens", 2**40), ("tokens", 30_000), ("loss_mask", 2), ("loss_mask", -1),
     ("segment", -5)],
)  # fmt: skip
def test_a_value_that_cannot_be_trained_on_is_named_with_its_row(tmp_path, tok, column, value):
    rows = {name: [np.ones(9, np.int64) for _ in range(4)] for name in packed.DTYPES}
    rows[column][2][5] = value
    folder = foreign(tmp_path / "theirs", rows)
    with pytest.raises(ValueError, match=f"train row 2: .* {value} at place 5 is not in 0 to"):
        data.open_dataset([folder], tok)
    with pytest.raises(ValueError, match="row 2"):
        data.show(folder, 2, tok=tok)
    good = foreign(tmp_path / "good", {n: [np.ones(9, np.int64)] * 4 for n in packed.DTYPES})
    assert len(data.open_dataset([good], tok)[0]) == 4


# --- places and disks ---


@pytest.mark.parametrize(
    "out, words",
    [
        ("file", "is a file and no folder"),
        ("file/below/it", "is a file and no folder"),
        ("nowhere", "is a link to what is not there"),
        ("nowhere/below", "is a link to what is not there"),
        ("x" * 300, "use a shorter one"),
        ("y" * 250, "use a shorter one"),
    ],
)
def test_a_place_that_cannot_be_is_one_line(tmp_path, source, capsys, out, words):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    command = ["pack", str(source), "--tokenizer", str(TOK), "--out", str(tmp_path / out)]
    assert data.main(command) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "nowhere"]
    assert (tmp_path / "file").read_text() == "mine"


FULL = """
import resource, sys, data
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(data.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("room", [0, 1000, 20_000, 70_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, source, room):
    command = ["pack", str(source), "--tokenizer", str(TOK), "--block", "16"]
    out = ["--out", str(tmp_path / "out")]
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(room), *command, *out],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
    assert list(tmp_path.iterdir()) == []
