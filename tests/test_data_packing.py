"""data.py: a packed directory is whole, nested and repeatable, and is opened for what it is."""

import filecmp
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from dialogue_sources import dialogue, numbers, rows_of

import data
from host import terminal
from text import tokenizer
from text.dialogues import has_answer, parse_row, read_dialogues

pytest_plugins = ["dialogue_sources"]  # its fixtures

ROOT = pathlib.Path(__file__).resolve().parent.parent


# --- packed directories ---


@pytest.mark.parametrize("pack", data.PACKS)
def test_a_packed_directory_is_a_tfds_directory_with_the_promised_features(
    tmp_path, toks, source, pack
):
    made = data.pack([source], toks["sp"], tmp_path / "out", pack=pack, block=64, eval_fraction=0.1)
    for split in ("train", "validation"):
        rows = rows_of(tmp_path / "out", split)
        columns = {"tokens": np.int32, "loss_mask": np.int8} | (
            {} if pack == "stream" else {"segment": np.int32}
        )
        assert {name: x.dtype.type for name, x in rows[0].items()} == columns
        assert all(x.shape == (65,) for row in rows for x in row.values())
        assert len(rows) == made["splits"][split]["rows"]
        assert sum(row["loss_mask"].sum() for row in rows) == made["splits"][split]["loss_tokens"]
        assert all(
            set(np.unique(row["loss_mask"])) <= {0, 1} and not row["loss_mask"][0] for row in rows
        )
        if pack != "stream":
            assert all(not row["tokens"][row["segment"] == 0].any() for row in rows)
    assert (
        tokenizer.load(tmp_path / "out" / "tokenizer").fingerprint
        == toks["sp"].fingerprint
        == made["tokenizer"]
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_stream_rows_on_disk_are_the_dialogues_one_after_another(tmp_path, toks, source):
    tok = toks["bpe"]
    data.pack([source], tok, tmp_path / "out", block=50)
    rows = rows_of(tmp_path / "out")
    ids = np.concatenate([rows[0]["tokens"][:1], *(row["tokens"][1:] for row in rows)])
    mask = np.concatenate([rows[0]["loss_mask"][:1], *(row["loss_mask"][1:] for row in rows)])
    every = [data.tokenize_dialogue(d, tok) for d in read_dialogues(source)]
    n = sum(len(t) for t, _ in every)
    assert not ids[n:].any() and not mask[n:].any() and len(ids) - n < 50
    starts = [i for i in range(n) if ids[i] == tok.bos and ids[i + 1] == tok.user and not mask[i]]
    found = {
        (tuple(ids[a:b]), tuple(mask[a:b])) for a, b in zip(starts, [*starts[1:], n], strict=False)
    }
    assert found == {(tuple(t), tuple(m)) for t, m in every} and len(starts) == 200


@pytest.mark.parametrize("pack", data.PACKS)
def test_the_bytes_are_the_same_for_any_number_of_workers(
    tmp_path, toks, source, pack, monkeypatch
):
    monkeypatch.setattr("text.sources.CHUNK", 3000)  # many jobs
    for name, workers in (("a", 1), ("b", 2)):
        data.pack(
            [source, source],
            toks["sp"],
            tmp_path / name,
            pack=pack,
            block=64,
            eval_fraction=0.1,
            workers=workers,
        )
    names = sorted(
        str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert names == sorted(
        str(p.relative_to(tmp_path / "b")) for p in (tmp_path / "b").rglob("*") if p.is_file()
    )
    assert (
        filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)[0] == names
        and len(names) == 6
    )


def test_smaller_amounts_are_subsets_of_larger_ones_and_validation_stays(tmp_path, toks, source):
    tok, held, before = toks["sp"], None, []
    for tokens in ("500", "2k", "0.004M", None):
        made = data.pack(
            [source],
            tok,
            tmp_path / str(tokens),
            pack="rows",
            block=400,
            tokens=tokens,
            eval_fraction=0.1,
            seed=5,
        )
        train, validation = (
            numbers(tmp_path / str(tokens), tok),
            numbers(tmp_path / str(tokens), tok, "validation"),
        )
        assert train[: len(before)] == before and len(train) > len(before)
        assert held is None or validation == held
        assert not set(train) & set(validation)
        if tokens:
            assert (
                terminal.count(tokens) - 300
                < made["splits"]["train"]["tokens"]
                <= terminal.count(tokens)
            )
        before, held = train, validation
    assert len(held) == 20 and sorted(before + held) == list(range(200))
    data.pack([source], tok, tmp_path / "other", pack="rows", block=400, eval_fraction=0.1, seed=6)
    assert numbers(tmp_path / "other", tok) != before


def test_a_text_is_cut_to_the_amount_asked_for(tmp_path, toks):
    (tmp_path / "a.txt").write_text("hello there fox " * 100, encoding="utf-8")
    for tokens in (40, 90):
        made = data.pack(
            [tmp_path / "a.txt"], toks["sp"], tmp_path / str(tokens), block=30, tokens=tokens
        )
        assert made["splits"]["train"]["tokens"] == tokens
    small, large = (
        np.concatenate([r["tokens"][:-1] for r in rows_of(tmp_path / n)]) for n in ("40", "90")
    )
    assert (small[:40] == large[:40]).all()


def test_copies_and_pieces_of_a_dialogue_never_lie_on_both_sides(tmp_path, toks):
    talk = [dialogue(i // 3) | {"id": f"x{i}"} for i in range(60)] + [
        dialogue(100 + i) | {"id": f"abcde{i // 3:02}_{4 * (i % 3)}"} for i in range(60)
    ]
    (tmp_path / "x.json").write_text(json.dumps(talk), encoding="utf-8")
    data.pack(
        [tmp_path / "x.json"],
        toks["sp"],
        tmp_path / "out",
        pack="rows",
        block=200,
        eval_fraction=0.2,
    )

    def group(n):
        return n if n < 100 else 100 + (n - 100) // 3

    train, held = (
        {group(n) for n in numbers(tmp_path / "out", toks["sp"], split)}
        for split in ("train", "validation")
    )
    assert not train & held and len(train | held) == 40 and len(held) == 8


@pytest.mark.parametrize("workers", [1, 2])
def test_ids_that_only_look_like_pieces_are_dialogues_of_their_own(tmp_path, toks, workers):
    talk = [dialogue(i) | {"id": f"medical_{i}"} for i in range(60)]
    talk += [
        dialogue(100 + i) | {"id": f"abcdefg_{4 * i}"} for i in range(5)
    ]  # 5 pieces of 4 turns
    (tmp_path / "x.json").write_text(json.dumps(talk), encoding="utf-8")
    settings = {"pack": "rows", "block": 200, "eval_fraction": 0.2, "workers": workers}
    data.pack([tmp_path / "x.json"], toks["sp"], tmp_path / "out", **settings)
    held = numbers(tmp_path / "out", toks["sp"], "validation")
    assert len(held) == 13 and len([n for n in held if n >= 100]) in (0, 5)


@pytest.mark.parametrize("template", ["roles", "koala"])  # which any tokenizer writes
def test_what_is_not_to_be_learned_carries_no_loss(toks, template):
    tok, end = toks["bpe"], toks["bpe"].decode([toks["bpe"].eos])
    row = {"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
    ]}  # fmt: skip
    [talk] = parse_row(json.dumps(row), "")
    ids, mask = data.tokenize_dialogue(talk, tok, template)
    assert tok.decode(ids[mask == 1].tolist()) == "d" + end
    assert "b" in tok.decode(ids[mask == 0].tolist())


def test_rows_without_a_turn_are_skipped_and_counted_and_refuse_no_file(tmp_path, toks, capsys):
    rows = [json.dumps(dialogue(i)) for i in range(20)]
    rows += ['{"conversations": []}', '{"conversations": null}', '{"messages": []}']
    rows += ['{"prompt": "unanswered"}', '{"prompt": "bad", "completion": "x", "label": false}']
    (tmp_path / "x.jsonl").write_text("\n".join(rows), encoding="utf-8")
    made = data.pack([tmp_path / "x.jsonl"], toks["sp"], tmp_path / "out", block=64)
    assert made["counts"]["rows"] == 25 and made["counts"]["malformed"] == 0
    assert made["counts"]["dialogues without an answer to learn (skipped)"] == 5
    assert made["splits"]["train"]["dialogues"] == 20


def test_half_a_surrogate_pair_is_packed_as_a_mark(tmp_path, toks):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a \\ud83d", "completion": "\\ude00 b"}\n')
    data.pack([tmp_path / "x.jsonl"], toks["sp"], tmp_path / "out", block=64)
    [row] = rows_of(tmp_path / "out")
    assert "\ufffd b" in toks["sp"].decode(row["tokens"].tolist())


def test_what_is_skipped_is_counted(tmp_path, toks, capsys):
    rows = [json.dumps(dialogue(i, 1, 2 + i % 8)) for i in range(50)]
    silent = json.dumps(
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": " "}]}
    )
    late = json.dumps(
        {
            "conversations": [
                {"from": "human", "value": "long " * 100},
                {"from": "gpt", "value": "short"},
            ]
        }
    )
    (tmp_path / "x").write_text(
        "\n".join([*rows, silent, late, "{oops", '{"question": "a", "chatgpt_answers": []}']),
        encoding="utf-8",
    )
    args = [
        "pack",
        str(tmp_path / "x"),
        "--tokenizer",
        str(toks["sp"].files[0]),
        "--pack",
        "rows",
        "--block",
        "60",
        "--max-bad-rows",
        "0.05",
        "--out",
        str(tmp_path / "out"),
    ]
    assert data.main(args) == 0
    out, err = capsys.readouterr()
    assert (
        "54 rows, 52 dialogues, 1 malformed" in out and f"{tmp_path / 'x'} line 53: not JSON" in err
    )
    talks = [
        data.tokenize_dialogue(d, toks["sp"])
        for d in read_dialogues(tmp_path / "x", max_bad=1)
        if has_answer(d)
    ]
    longer, dropped = sum(len(t) > 61 for t, _ in talks), sum(not m[:61].any() for _, m in talks)
    assert len(talks) == 51 and longer > dropped > 0
    for count, what in (
        (1, "dialogues without an answer to learn"),
        (1, "rows without an answer"),
        (longer, r"dialogues longer than the block \(cut\)"),
        (dropped, "dialogues without a loss token before the cut"),
        (sum(max(len(t) - 61, 0) for t, _ in talks), "tokens cut off"),
    ):
        assert re.search(rf" {count:,} {what}", out), (count, what)
    assert (
        json.loads((tmp_path / "out" / "pack.json").read_text())["splits"]["train"]["rows"]
        == 51 - dropped
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_while_packing_nothing_is_left_that_opens_and_the_next_start_is_whole(
    tmp_path, toks, workers
):
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps(dialogue(i, 6, 60)) + "\n" for i in range(1500)), encoding="utf-8"
    )
    command = [
        sys.executable,
        str(ROOT / "data.py"),
        "pack",
        str(tmp_path / "x.jsonl"),
        "--tokenizer",
        str(toks["sp"].files[0]),
        "--workers",
        workers,
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    spill = tmp_path / "out.tmp" / "spill"
    while not (spill.exists() and (workers == "1" or spill.stat().st_size)):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    children = [
        int(c)
        for c in pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
        .read_text()
        .split()
    ]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (
        not (tmp_path / "out").exists()
        and (tmp_path / "out.tmp").exists()
        and bool(children) == (workers == "2")
    )
    with pytest.raises(ValueError):
        data.open_dataset([tmp_path / "out"], toks["sp"])
    assert not data.is_packed(tmp_path / "out.tmp")
    deadline = time.time() + 20
    while any(alive(c) for c in children):
        assert time.time() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
    (tmp_path / "x.jsonl").write_text(json.dumps(dialogue(0)), encoding="utf-8")  # less to do
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert len(rows_of(tmp_path / "out")) == 1 and not (tmp_path / "out.tmp").exists()


def alive(pid):
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_two_processes_that_pack_the_same_at_once_agree(tmp_path, toks, source):
    command = [
        sys.executable,
        str(ROOT / "data.py"),
        "pack",
        str(source),
        "--tokenizer",
        str(toks["sp"].files[0]),
        "--block",
        "64",
        "--out",
        str(tmp_path / "out"),
    ]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0] and outputs[0] == outputs[1] and not outputs[0][1]
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and len(rows_of(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("lock"))


def test_packing_and_reading_need_neither_jax_nor_tensorflow(tmp_path, toks, source):
    code = f"""
import sys, data
from text import tokenizer
tok = tokenizer.load({str(toks["sp"].files[0])!r})
data.open_dataset([{str(source)!r}], tok, block=64, cache={str(tmp_path)!r})[0].rows([0])
sys.exit(bool(sys.modules.keys() & {{"jax", "tensorflow", "torch"}}))"""
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
    )


# --- opening ---


@pytest.mark.parametrize("pack", data.PACKS)
def test_rows_by_random_access_equal_what_tfds_reads(tmp_path, toks, source, pack):
    train, held = data.open_dataset(
        [source], toks["sp"], pack=pack, block=64, eval_fraction=0.1, cache=tmp_path
    )
    [folder] = tmp_path.iterdir()
    for dataset, split in ((train, "train"), (held, "validation")):
        want = rows_of(folder, split)
        assert len(dataset) == len(want)
        indices = np.array([len(want) - 1, 0, 3, 0])
        got = dataset.rows(indices)
        assert {n: (x.dtype, x.shape) for n, x in got.items()} == {
            n: (x.dtype, (4, 65)) for n, x in want[0].items()
        }
        assert all(
            (got[name][k] == want[i][name]).all() for k, i in enumerate(indices) for name in got
        )
        assert {n: x.shape for n, x in dataset.rows(np.zeros(0, np.int64)).items()} == {
            n: (0, 65) for n in got
        }
    assert train.fingerprint != held.fingerprint


def test_sources_are_packed_once_and_found_again_by_their_contents(tmp_path, toks, source, capsys):
    def open_(path, **more):
        return data.open_dataset([path], toks["sp"], block=64, cache=tmp_path / "cache", **more)[0]

    first = open_(source)
    assert "packing into" in capsys.readouterr().err
    copy = tmp_path / "another name.json"
    copy.write_bytes(source.read_bytes())
    assert open_(copy, max_bad=0.5).fingerprint == first.fingerprint and not capsys.readouterr().err
    others = [
        open_(source, seed=1),
        open_(source, tokens="2k"),
        open_(source, pack="rows"),
        open_(source, template="koala"),
    ]
    copy.write_text(json.dumps(dialogue(0)), encoding="utf-8")
    others.append(open_(copy))
    assert (
        len({d.fingerprint for d in [first, *others]}) == 6
        and len(list((tmp_path / "cache").iterdir())) == 6
    )


def test_a_packed_directory_is_refused_with_what_it_was_not_made_for(tmp_path, toks, source):
    packed = tmp_path / "packed"
    data.pack([source], toks["sp"], packed, block=64, pack="documents", tokens="3k")
    train, held = data.open_dataset(
        [packed],
        toks["sp"],
        block=64,
        pack="documents",
        template="roles",
        tokens=3000,
        eval_fraction=0.02,
    )
    assert (
        held is None
        and len(train)
        and data.packed_settings([packed])
        == {"template": "roles", "pack": "documents", "block": 64}
    )
    for change, words in (
        ({"block": 128}, "--block 128"),
        ({"pack": "stream"}, "--pack stream"),
        ({"template": "koala"}, "--template koala"),
        ({"tokens": "1k"}, "--tokens 1000"),
    ):
        with pytest.raises(ValueError, match=f"{words}, but .*packed.* leave it out"):
            data.open_dataset([packed], toks["sp"], **change)
    with pytest.raises(ValueError, match="another tokenizer"):
        data.open_dataset([packed], toks["bpe"])
    with pytest.raises(ValueError, match="used alone"):
        data.open_dataset([packed, source], toks["sp"])
    with pytest.raises(ValueError, match="packed already"):
        data.pack([packed], toks["sp"], tmp_path / "again")
    next(packed.glob("*.array_record*")).unlink()
    with pytest.raises(ValueError, match="lacks mynah-train"):
        data.open_dataset([packed], toks["sp"])


def test_a_tfds_directory_of_tokens_that_somebody_else_made_is_read(tmp_path, toks, capsys):
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    features = tfds.features.FeaturesDict(
        {
            "tokens": tfds.features.Tensor(shape=(5,), dtype=np.int64),
            "loss_mask": tfds.features.Tensor(shape=(5,), dtype=np.int32),
        }
    )
    writer = ArrayRecordWriter(
        str(tmp_path / "theirs-train.array_record-00000-of-00001"), "group_size:1"
    )
    for i in range(3):
        writer.write(
            features.serialize_example(
                {"tokens": np.arange(5) + 10 * i, "loss_mask": np.array([0, 1, 0, 1, 1], np.int32)}
            )
        )
    writer.close()
    template = tfds.core.ShardedFileTemplate(
        tmp_path, dataset_name="theirs", split="train", filetype_suffix="array_record"
    )
    info = tfds.core.SplitInfo(
        name="train", shard_lengths=[3], num_bytes=0, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(tmp_path), features=features, split_infos=[info], check_data=False
    )
    train, held = data.open_dataset(
        [tmp_path], toks["sp"], template="koala", pack="stream", block=4
    )
    assert (
        held is None
        and len(train) == 3
        and "does not say which tokenizer" in capsys.readouterr().err
    )
    got = train.rows([2, 0])
    assert (
        got["tokens"].tolist() == [[20, 21, 22, 23, 24], [0, 1, 2, 3, 4]]
        and got["tokens"].dtype == np.int32
        and got["loss_mask"].dtype == np.int8
    )
    with pytest.raises(ValueError, match="--block 8, but"):
        data.open_dataset([tmp_path], toks["sp"], block=8)
