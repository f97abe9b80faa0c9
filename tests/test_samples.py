"""The embedded samples: the same bytes again, held-out names unseen, form, tokenizer, sizes."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest
import sentencepiece

SAMPLES = pathlib.Path(__file__).resolve().parent.parent / "samples"
spec = importlib.util.spec_from_file_location("make_samples", SAMPLES / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


def read(name):
    return [json.loads(line) for line in (SAMPLES / name).read_text(encoding="utf-8").splitlines()]


def values(dialogues, who=("human", "gpt")):
    return [
        turn["value"]
        for dialogue in dialogues
        for turn in dialogue["conversations"]
        if turn["from"] in who
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return sentencepiece.SentencePieceProcessor(model_file=str(SAMPLES / "tokenizer.model"))


def test_the_script_regenerates_every_file_byte_for_byte():
    for name, content in make.make_files().items():
        assert (SAMPLES / name).read_bytes() == content, (
            f"{name} is not what samples/make.py writes"
        )


def test_another_process_in_another_folder_writes_the_same_bytes_and_check_sees_a_changed_one(
    tmp_path,
):
    def run(*flags):
        return subprocess.run(
            [sys.executable, SAMPLES / "make.py", "--out", tmp_path / "new", *flags],
            cwd=tmp_path,
            env={"PYTHONHASHSEED": "7"},
            capture_output=True,
            text=True,
        )

    missing = run("--check")
    assert missing.returncode == 2 and not (tmp_path / "new").exists()  # --check writes nothing
    assert run().returncode == 0
    written = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in written] == [
        "dialogues.jsonl",
        "heldout.jsonl",
        "tokenizer.model",
    ]
    for path in written:
        assert path.read_bytes() == (SAMPLES / path.name).read_bytes()
    assert run("--check").returncode == 0
    (tmp_path / "new" / "heldout.jsonl").write_text("{}\n")
    changed = run("--check")
    assert (
        changed.returncode == 2
        and "heldout.jsonl" in changed.stderr
        and changed.stderr.count("\n") == 1
    )


@pytest.mark.parametrize(
    "name, low, high", [("dialogues.jsonl", 350, 450), ("heldout.jsonl", 35, 45)]
)
def test_dialogues_are_sharegpt_json_lines_of_two_or_three_turns(name, low, high):
    dialogues = read(name)
    assert low <= len(dialogues) <= high
    assert len({dialogue["id"] for dialogue in dialogues}) == len(dialogues)
    for dialogue in dialogues:
        assert set(dialogue) == {"id", "conversations"}
        turns = dialogue["conversations"]
        assert len(turns) in (4, 6) and [turn["from"] for turn in turns] == ["human", "gpt"] * (
            len(turns) // 2
        )
        assert all(
            set(turn) == {"from", "value"} and turn["value"] == turn["value"].strip() != ""
            for turn in turns
        )
        assert not any(
            "{" in turn["value"] or "}" in turn["value"] for turn in turns
        )  # a template left unfilled


@pytest.mark.parametrize("name", ["dialogues.jsonl", "heldout.jsonl"])
def test_first_replies_open_then_list_then_sum_up(name):
    for dialogue in read(name):
        opening, items, summary = dialogue["conversations"][1]["value"].split("\n\n")
        assert opening.endswith(":")
        assert (
            all(re.match(rf"({i}\.|-) ", item) for i, item in enumerate(items.split("\n"), 1))
            and "\n" in items
        )
        assert summary.startswith(("In summary,", "Overall,", "In short,"))


def test_no_held_out_name_occurs_in_the_training_dialogues():
    """Names are found without the script: capitalised words inside a sentence of a file."""
    heldout, training_text = (
        read("heldout.jsonl"),
        "\n".join(values(read("dialogues.jsonl"))).lower(),
    )
    inside = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")
    names = set()
    for dialogue in heldout:
        own = set(inside.findall(" ".join(values([dialogue]))))
        assert own, f"{dialogue['id']} names nobody"
        names |= own
    assert len(names) > 15
    assert [name for name in sorted(names) if name.lower() in training_text] == []
    _, _, known, new = make.make_dialogues()
    assert names <= new and not known & new


def test_held_out_replies_take_every_name_and_year_from_what_was_said_before():
    given = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+|\d{3}")
    for dialogue in read("heldout.jsonl"):
        before = ""
        for turn in dialogue["conversations"]:
            if turn["from"] == "gpt":
                assert all(name in before for name in given.findall(turn["value"])), dialogue["id"]
            before += turn["value"] + "\n"


def test_the_tokenizer_has_llamas_special_ids_and_changes_no_text(tokenizer):
    assert (
        tokenizer.get_piece_size(),
        tokenizer.unk_id(),
        tokenizer.bos_id(),
        tokenizer.eos_id(),
    ) == (1024, 0, 1, 2)
    texts = values(read("dialogues.jsonl")) + values(read("heldout.jsonl"))
    texts += [
        "",
        " ",
        "  two  spaces ",
        "\n\n\tlines \r\n",
        "naïve 鸟 🐦‍⬛",
        "<s></s><|user|><0x41>",
        "\x00\x7f",
    ]
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {0, 1, 2} & set(
            ids
        )  # byte fallback: nothing is unknown, and text makes no control id


def test_held_out_names_are_several_known_pieces_as_training_names_are(tokenizer):
    _, _, known, new = make.make_dialogues()
    for names in (known, new):
        assert all(len(tokenizer.encode(name)) > 1 for name in names)
    byte_ids = {i for i in range(1024) if tokenizer.is_byte(i)}
    assert len(byte_ids) == 256
    assert not any(byte_ids & set(tokenizer.encode(name)) for name in new)


def test_dialogues_fit_256_tokens_and_the_samples_stay_small(tokenizer):
    for name in ("dialogues.jsonl", "heldout.jsonl"):
        # <s>, a role token a turn, </s> after each answer
        lengths = [
            1
            + sum(
                len(tokenizer.encode(turn["value"])) + 1 + (turn["from"] == "gpt") for turn in turns
            )
            for turns in (dialogue["conversations"] for dialogue in read(name))
        ]
        assert sum(length <= 256 for length in lengths) >= 0.95 * len(lengths)
    assert sum(path.stat().st_size for path in SAMPLES.iterdir() if path.is_file()) < 600_000


def test_the_model_file_stores_no_path():
    content = (SAMPLES / "tokenizer.model").read_bytes()
    assert (
        not re.search(rb"/\w+/|jsonl|\.model|samples", content)
        and str(SAMPLES).encode() not in content
    )
