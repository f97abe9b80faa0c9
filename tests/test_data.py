"""data.py: the loss falls on the assistants' words alone, and a packed directory is whole, nested
and repeatable.
"""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from dialogue_sources import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from host import terminal
from text import tokenizer
from text.dialogues import read_dialogues, turns

pytest_plugins = ["dialogue_sources"]  # its fixtures

ROOT = pathlib.Path(__file__).resolve().parent.parent


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
