"""data.py: the loss falls on the assistants' words alone, and a packed directory is whole, nested
and repeatable.
"""

import filecmp
import gzip
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from host import terminal
from text import tokenizer
from text.byte_pairs import byte_alphabet
from text.dialogues import has_answer, parse_row, read_dialogues, turns

ROOT = pathlib.Path(__file__).resolve().parent.parent


# --- tokenizers and dialogues of our own ---


@pytest.fixture(scope="module")
def toks(tmp_path_factory):
    """A SentencePiece model that keeps every text, and a byte-level BPE, each of some 300 ids."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizers")
    text = [
        "The quick brown fox says hello to the lazy dog.",
        "USER: hello there GPT: hello",
        "你好 world  \t ok",
    ] * 20
    (folder / "sp").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_prefix=str(folder / "sp" / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (folder / "bpe").mkdir()
    letters, merges = byte_alphabet(), ["h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he"]
    tokens = [*letters, *(m.replace(" ", "") for m in merges), "<|endoftext|>"]
    (folder / "bpe" / "encoder.json").write_text(
        json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8"
    )
    (folder / "bpe" / "vocab.bpe").write_text(
        "#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8"
    )
    found = {name: tokenizer.load(folder / name) for name in ("sp", "bpe")}
    assert not any(tok.normalises for tok in found.values())
    return found


def dialogue(i, turns=2, words=12):
    rng = np.random.default_rng(i)

    def say(who):
        return f"{who} {i} " + " ".join(
            rng.choice(["hello", "the", "fox", "dog  ", "\n", "你好", "quick"], words)
        )

    return {
        "id": f"dialogue {i}",
        "conversations": [{"from": who, "value": say(who)} for who in ("human", "gpt") * turns],
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """200 dialogues as JSON lines; each names its number in every turn."""
    path = tmp_path_factory.mktemp("source") / "talk.jsonl"
    path.write_text(
        "".join(json.dumps(dialogue(i, 1 + i % 3, 3 + i % 20)) + "\n" for i in range(200)),
        encoding="utf-8",
    )
    return path


def rows_of(folder, split="train"):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(str(folder)).as_data_source(split)
    return [source[i] for i in range(len(source))]


def numbers(folder, tok, split="train"):
    """The numbers of the dialogues that a packed directory of rows holds."""
    return [
        int(re.search(r"human (\d+)", tok.decode(row["tokens"].tolist()))[1])
        for row in rows_of(folder, split)
    ]


# --- dialogue -> ids and mask ---

HARD = [
    "<|user|>",
    "<|assistant|>",
    "<s>",
    "</s>",
    "<|endoftext|>",
    "▁",
    "▁▁a",
    "  ",
    "\n\n",
    "\t",
    "\r\n",
    " USER:",
    "GPT:",
    "😀",
    "👩‍👩‍👧",
    "é",
    "\0",
    "\u3000",
    "<0x0A>",
]
TEXT = st.lists(st.text(max_size=5) | st.sampled_from(HARD), max_size=6).map("".join)
TALK = st.lists(
    st.tuples(st.sampled_from(["human", "gpt", "system"]), TEXT), min_size=1, max_size=7
)


@pytest.mark.parametrize("template", ["roles", "koala"])  # which any tokenizer writes
@pytest.mark.parametrize("name", ["sp", "bpe"])
@given(said=TALK)
@settings(max_examples=150, deadline=None)
def test_the_loss_tokens_decode_to_the_answers_and_nothing_else(toks, name, template, said):
    tok = toks[name]
    talk = {"id": "", "conversations": [{"from": who, "value": text} for who, text in said]}
    ids, mask = data.tokenize_dialogue(talk, tok, template)
    assert (
        ids.dtype == np.int32
        and mask.dtype == np.int8
        and ids.shape == mask.shape
        and ids[0] == tok.bos
        and not mask[0]
    )
    end = tok.decode([tok.eos])
    humans_before = [any(who == "human" for who, _ in said[:i]) for i in range(len(said))]
    answers = [
        text
        for (who, text), asked in zip(said, humans_before, strict=False)
        if who == "gpt" and asked
    ]
    assert tok.decode(ids[mask == 1].tolist()) == "".join(text + end for text in answers)
    # and answer by answer: each run of loss tokens is one answer with its end
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    runs = [tok.decode(ids[a:b].tolist()) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    assert "".join(runs) == "".join(text + end for text in answers)
    assert (ids == tok.user).sum() == (template == "roles") * sum(
        who == "human" for who, _, _ in turns(talk)
    )


@pytest.mark.parametrize("name", ["sp", "bpe"])
@given(said=TALK)
@settings(max_examples=100, deadline=None)
def test_a_row_of_the_roles_template_decodes_to_its_text(toks, name, said):
    tok = toks[name]
    talk = {"id": "", "conversations": [{"from": who, "value": text} for who, text in said]}
    start, end = tok.decode([tok.bos]), tok.decode([tok.eos])
    text = "".join(
        "<|user|>" + text if who == "human" else "<|assistant|>" + text + end
        for who, text, _ in turns(talk)
    )
    assert tok.decode(data.tokenize_dialogue(talk, tok)[0].tolist()) == start + text


def test_koala_writes_its_text_and_no_space_before_the_answer(toks):
    tok, talk = (
        toks["bpe"],
        {
            "id": "",
            "conversations": [
                {"from": w, "value": t}
                for w, t in (
                    ("human", "a"),
                    ("gpt", "b"),
                    ("human", "c"),
                    ("gpt", "d"),
                    ("human", "e"),
                )
            ],
        },
    )
    ids, mask = data.tokenize_dialogue(talk, tok, "koala")
    end = tok.decode([tok.eos])
    assert (
        tok.decode(ids[1:].tolist())
        == f"BEGINNING OF CONVERSATION: USER: a GPT:b{end}USER: c GPT:d{end}USER: e"
    )
    ids, mask = data.tokenize_dialogue(talk, toks["sp"], "koala")
    assert (
        toks["sp"]
        .decode(ids.tolist())
        .startswith("<s>BEGINNING OF CONVERSATION: USER: a GPT: b</s>USER: c GPT: d</s>")
    )


def test_a_text_carries_loss_on_all_but_its_start(toks):
    tok = toks["sp"]
    ids, mask = data.tokenize_dialogue({"id": "", "text": "hello  fox"}, tok, "koala")
    assert tok.decode(ids.tolist()) == "<s>hello  fox</s>" and mask.tolist() == [0] + [1] * (
        len(ids) - 1
    )


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


# --- the batch of a step ---


@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_each_epoch_visits_every_row_once_whatever_the_batch(n, batch, seed):
    steps = -(-3 * n // batch)
    order = [data.batch_indices(n, batch, seed, s) for s in reversed(range(1, steps + 1))][
        ::-1
    ]  # in any order of the calls
    assert all(x.shape == (batch,) and x.dtype == np.int64 for x in order)
    order = np.concatenate(order)
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
    assert n < 8 or (order[:n] != order[n : 2 * n]).any()


@given(
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9]),
)
@settings(max_examples=60, deadline=None)
def test_a_mixture_has_its_share_exactly_and_goes_through_both_sets_by_epochs(
    n, extra, batch, fraction
):
    class Rows:
        columns = {"tokens": 1}

        def __init__(self, n, first):
            self.n, self.first = n, first

        def __len__(self):
            return self.n

        def rows(self, indices):
            assert all(0 <= i < self.n for i in indices)
            return {"tokens": np.array(indices, np.int64).reshape(-1, 1) + self.first}

    main, other = Rows(n, 0), Rows(extra, n)
    seen = []
    for step in range(1, 13):
        read, indices = data.mixed(main, other, batch, fraction, 7, step)
        assert indices.shape == (batch,)
        assert (read(indices)["tokens"][:, 0] == indices).all() and (
            read(indices[::-1])["tokens"][:, 0] == indices[::-1]
        ).all()
        seen += indices.tolist()
        assert abs(sum(i >= n for i in seen) - fraction * batch * step) < 1 + 1e-6
    for found, size in (([i for i in seen if i < n], n), ([i - n for i in seen if i >= n], extra)):
        whole = len(found) // size
        assert all(
            sorted(found[e * size : (e + 1) * size]) == list(range(size)) for e in range(whole)
        )


def test_a_mixture_of_different_packings_is_refused(tmp_path, toks, source):
    sets = [
        data.open_dataset([source], toks["sp"], pack=pack, block=block, cache=tmp_path)[0]
        for pack, block in (("stream", 64), ("rows", 64), ("stream", 32))
    ]
    for other in sets[1:]:
        with pytest.raises(ValueError, match="packed differently"):
            data.mixed(sets[0], other, 4, 0.5, 0, 1)


# --- the program ---


def run(*args):
    done = subprocess.run(
        [sys.executable, str(ROOT / "data.py"), *map(str, args)], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_show_colours_the_loss_tokens_and_disarms_the_text(tmp_path, toks, capsys):
    talk = {
        "conversations": [
            {"from": "human", "value": "\x1b[2J hello\u202e"},
            {"from": "gpt", "value": "the \x1b]0;x\x07fox\tis  \n你好"},
        ]
    }
    (tmp_path / "x").write_text(json.dumps(talk), encoding="utf-8")
    for pack in data.PACKS:
        assert (
            data.main(
                [
                    "pack",
                    str(tmp_path / "x"),
                    "--tokenizer",
                    str(toks["sp"].files[0]),
                    "--block",
                    "90",
                    "--pack",
                    pack,
                    "--out",
                    str(tmp_path / pack),
                ]
            )
            == 0
        )
        capsys.readouterr()
        assert data.main(["show", str(tmp_path / pack), "--row", "0"]) == 0
        shown = capsys.readouterr().out
        assert (
            "<s><|user|>\\x1b[2J hello\\u202e<|assistant|>\x1b[32mthe \\x1b]0;x\\x07fox\tis "
            " \n你好</s>\x1b[0m"
        ) in shown
        assert shown.count("\x1b") == 2 and "90" not in shown.splitlines()[0]


def test_show_cuts_a_row_that_starts_inside_an_answer_where_its_bytes_end(tmp_path, toks):
    (tmp_path / "x").write_text(
        json.dumps(
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "fox 你好 the dog " * 9},
                ]
            }
        ),
        encoding="utf-8",
    )
    data.pack([tmp_path / "x"], toks["sp"], tmp_path / "out", block=11)
    for row in range(5):
        ids = rows_of(tmp_path / "out")[row]["tokens"].tolist()
        text = (
            data.show(tmp_path / "out", row)
            .split("\n", 1)[1]
            .replace("\x1b[32m", "")
            .replace("\x1b[0m", "")
        )
        assert text.replace("\ufffd", "") == toks["sp"].decode(ids).replace("\ufffd", "")


def test_what_a_user_can_mend_is_one_line_and_status_2(tmp_path, toks, source, capsys):
    tok, packed = toks["sp"].files[0], tmp_path / "packed"
    data.pack([source], toks["sp"], packed, block=64)
    (tmp_path / "silent").write_text('{"prompt": "a", "completion": ""}\n')
    (tmp_path / "long").write_text(json.dumps({"prompt": "long " * 100, "completion": "b"}))
    common = ["--tokenizer", tok, "--out", tmp_path / "out"]
    for args, words in (
        (["pack", tmp_path / "absent", *common], "does not exist"),
        (
            ["pack", source, "--tokenizer", tmp_path, "--out", tmp_path / "out"],
            "holds no tokenizer",
        ),
        (["pack", source, *common, "--tokens", "many"], "--tokens many"),
        (["pack", source, *common, "--tokens", "0"], "--tokens 0"),
        (["pack", source, *common, "--tokens", "3"], "--tokens 3"),
        (["pack", source, *common, "--eval-fraction", "1"], "--eval-fraction 1"),
        (["pack", source, *common, "--block", "0"], "--block 0"),
        (["pack", source, *common, "--workers", "0"], "--workers 0"),
        (["pack", source, *common, "--block", "1000000000000"], "longer than any model reads"),
        (["pack", source, *common, "--eval-fraction", "nan"], "--eval-fraction nan"),
        (["pack", source, *common, "--max-bad-rows", "2"], "--max-bad-rows 2"),
        (["pack", tmp_path / "silent", *common], "none of the 1 rows"),
        (["pack", tmp_path / "long", *common, "--pack", "rows", "--block", "9"], "--block 9"),
        (["pack", tmp_path / "long", *common, "--eval-fraction", "0.1"], "--eval-fraction 0"),
        (["pack", source, "--tokenizer", tok, "--out", packed], "remove it, or name another"),
        (["show", packed, "--row", "100000"], "has the train rows 0 to"),
        (["show", packed, "--row", "-1"], "--row -1"),
        (["show", packed, "--split", "test"], "split test"),
        (["show", tmp_path], "no packed directory"),
        (["show", packed, "--tokenizer", toks["bpe"].files[0]], "another tokenizer"),
    ):
        assert data.main([str(a) for a in args]) == 2, words
        out, err = capsys.readouterr()
        assert words in err and err.count("\n") == 1 and err.startswith("data.py: ") and not out
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.tmp").exists()
    code, out, err = run("show", packed, "--row", "999")
    assert code == 2 and "Traceback" not in err and err.count("\n") == 1


def test_too_little_data_for_the_amount_asked_is_said_loudly(tmp_path, toks, source, capsys):
    data.pack([source], toks["sp"], tmp_path / "out", tokens="20M", block=64)
    assert "WARNING: --tokens 20,000,000, but there are only" in capsys.readouterr().err


def test_amounts_are_read_with_their_suffixes():
    for text, n in (
        ("20M", 20_000_000),
        ("0.3M", 300_000),
        ("65,536", 65536),
        ("1e6", 10**6),
        ("1.5b", 15 * 10**8),
        ("2 k", 2000),
        (7, 7),
        (None, None),
        (".5k", 500),
    ):
        assert terminal.count(text) == n
    for text in ("", "M", "-1", "0", "1.5.2", "20 tokens", "1e99", "0.5"):
        with pytest.raises(ValueError, match="--tokens"):
            terminal.count(text)


def test_help_teaches_the_flags_their_units_and_the_papers_values(capsys):
    with pytest.raises(SystemExit) as stop:
        data.main(["pack", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for words in (
        "dialogue -> ids",
        "ids -> rows",
        "how much, and which",
        "paper 0.3M to 150M",
        "paper 2048",
        "example: python data.py pack",
    ):
        assert words in text


# --- real data ---

REAL = [
    "dialogues/sharegpt_en.json.gz",
    "dialogues/sharegpt_zh.jsonl.gz",
    "dialogues/baize_quora_ko.json.gz",
    "dialogues/fastchat_dummy_conversation.json",
    "hc3/medicine.jsonl.gz",
    "alpaca/alpaca_gpt4_data.800.json.gz",
]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("template", ["roles", "koala"])  # which any tokenizer writes
def test_the_loss_tokens_of_real_dialogues_decode_to_their_answers(data_dir, name, template):
    tok = tokenizer.load(data_dir / "tokenizers" / name)
    end, some = tok.decode([tok.eos]), 0
    for source in REAL:
        for k, talk in enumerate(read_dialogues(data_dir / source)):
            if k % 10:
                continue
            ids, mask = data.tokenize_dialogue(talk, tok, template)
            assert tok.decode(ids[mask == 1].tolist()) == "".join(
                text + end for _, text, learned in turns(talk) if learned
            )
            some += 1
    assert some > 400


def test_real_sharegpt_packs_into_blocks_with_every_token_accounted_for(data_dir, tmp_path, capsys):
    source, tok = (
        data_dir / "dialogues/sharegpt_en.json.gz",
        tokenizer.load(data_dir / "tokenizers/llama"),
    )
    args = [
        "pack",
        source,
        "--tokenizer",
        data_dir / "tokenizers/llama",
        "--eval-fraction",
        "0.02",
        "--out",
        tmp_path / "out",
        "--workers",
        "2",
    ]
    assert data.main([str(a) for a in args]) == 0
    out = capsys.readouterr().out
    assert (
        "660 rows, 660 dialogues, 0 malformed" in out
        and "224 begins with the assistant" in out
        and "5 dialogues without an answer" in out
    )
    talks = [
        t
        for t in read_dialogues(source)
        if any(learned and text.strip() for _, text, learned in turns(t))
    ]
    sizes = {t["id"]: data.tokenize_dialogue(t, tok) for t in talks}
    splits = json.loads((tmp_path / "out" / "pack.json").read_text())["splits"]
    assert sum(s["tokens"] for s in splits.values()) == sum(len(t) for t, _ in sizes.values())
    assert sum(s["loss_tokens"] for s in splits.values()) == sum(
        int(m.sum()) for _, m in sizes.values()
    )
    assert splits["validation"]["dialogues"] == 13 and splits["train"]["rows"] == -(
        -(splits["train"]["tokens"] - 1) // 2048
    )
    train, held = data.open_dataset([tmp_path / "out"], tok)
    rows = train.rows(data.batch_indices(len(train), 32, 0, 6))
    assert rows["tokens"].shape == (32, 2049) and 0.4 < rows["loss_mask"].mean() < 0.95
    text = gzip.decompress(source.read_bytes()).decode()
    answer = next(t for t in talks if len(t["conversations"]) == 2)["conversations"][1]["value"]
    assert json.dumps(answer)[1:20] in text


def test_a_text_for_language_modelling_comes_back_whole(data_dir, tmp_path):
    tok = tokenizer.load(data_dir / "tokenizers/llama")
    train, _ = data.open_dataset(
        [data_dir / "text/tinystories_sample.txt"], tok, block=512, cache=tmp_path
    )
    rows = train.rows(range(len(train)))
    ids = np.concatenate([rows["tokens"][0, :1], rows["tokens"][:, 1:].reshape(-1)])
    n = int(np.concatenate([[1], rows["loss_mask"][:, 1:].reshape(-1)]).sum())
    assert (
        tok.decode(ids[:n].tolist())
        == "<s>" + (data_dir / "text/tinystories_sample.txt").read_text(encoding="utf-8") + "</s>"
        and not ids[n:].any()
    )
    assert os.path.getsize(data_dir / "text/tinystories_sample.txt") == 248120
