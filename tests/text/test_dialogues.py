"""dialogues.py: every form of source becomes the same dialogues; what is malformed is named,
counted and skipped.
"""

import collections
import gzip
import io
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text import dialogues, sources
from text.dialogues import (
    continues,
    has_answer,
    parse_row,
    peculiarities,
    raw_chunks,
    read_dialogues,
    split_key,
    turns,
)

TALK = [("human", "Hi"), ("gpt", "Hello!"), ("human", "Bye"), ("gpt", "See you.")]
FORMS = {
    "ShareGPT": {"id": "7", "conversations": [{"from": who, "value": text} for who, text in TALK]},
    "messages": {
        "id": 7,
        "messages": [
            {"role": {"human": "user", "gpt": "assistant"}[who], "content": text}
            for who, text in TALK
        ],
    },
    "content parts": {
        "id": "7",
        "messages": [
            {
                "role": {"human": "User", "gpt": "Assistant"}[who],
                "content": [{"type": "text", "text": text}],
            }
            for who, text in TALK
        ],
    },
    "Koala": {
        "id": "7",
        "human_1": "Hi",
        "gpt_1": "Hello!",
        "human_2": "Bye",
        "gpt_2": "See you.",
        "human_10": "",
        "gpt_10": None,
    },
    "Baize": {
        "id": "7",
        "topic": "greetings",
        "input": (
            "The conversation.\n[|Human|] Hi\n[|AI|] Hello!\n[|Human|] Bye\n"
            "[|AI|] See you.\n[|Human|] "
        ),
    },
}


def said(dialogue):
    return [(t["from"], t["value"]) for t in dialogue["conversations"]]


def write(path, content, zipped=False):
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


# --- forms ---


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_dialogue_becomes_the_same_one(form):
    [dialogue] = parse_row(json.dumps(FORMS[form]), "name")
    assert said(dialogue) == TALK and dialogue["id"] == "7"


def test_hc3_gives_a_dialogue_for_each_answer_of_the_teacher_and_none_of_the_humans():
    row = {
        "question": "Why?",
        "human_answers": ["Who knows."],
        "chatgpt_answers": ["Because.", "There are reasons."],
    }
    found = parse_row(json.dumps(row), "row")
    assert [said(d) for d in found] == [
        [("human", "Why?"), ("gpt", "Because.")],
        [("human", "Why?"), ("gpt", "There are reasons.")],
    ]
    assert len({d["id"] for d in found}) == 2 and len({split_key(d) for d in found}) == 1
    assert parse_row(json.dumps(row | {"chatgpt_answers": []}), "row") == []


def test_alpaca_puts_its_input_behind_a_blank_line():
    assert said(parse_row('{"instruction": "Add.", "input": "1 2", "output": "3"}', "")[0]) == [
        ("human", "Add.\n\n1 2"),
        ("gpt", "3"),
    ]
    assert said(parse_row('{"instruction": "Add.", "input": "", "output": "3"}', "")[0]) == [
        ("human", "Add."),
        ("gpt", "3"),
    ]


def test_pairs_and_texts():
    assert said(parse_row('{"prompt": "a", "completion": "b"}', "")[0]) == [
        ("human", "a"),
        ("gpt", "b"),
    ]
    assert parse_row('{"text": "a  b\\n"}', "here") == [{"id": "here", "text": "a  b\n"}]


@pytest.mark.parametrize(
    "row, reason",
    [
        ('{"conversations": "x"}', "not a list"),
        ('{"conversations": [1]}', "turn 1"),
        ('{"conversations": [{"from": "human", "value": null}]}', "turn 1 is 'null', not a string"),
        (
            (
                '{"conversations": [{"from": "human", "value": "a"}, {"from": "narrator", '
                '"value": "b"}]}'
            ),
            "turn 2 is by 'narrator'",
        ),
        ('{"conversations": [{"from": ["human"], "value": "a"}]}', "speakers are"),
        ('{"conversations": [{"value": "a"}]}', "turn 1 has the keys"),
        ('{"question": "a", "chatgpt_answers": "b"}', "not a list"),
        ('{"instruction": "a", "output": 3}', "output is '3'"),
        ('{"human_1": 5}', "human_1"),
        ("[1]", "not an object"),
        ("{", "not JSON"),
        ('{"other": 1}', "no known form"),
        (b'{"text": "\xff"}', "not UTF-8"),
        ("[" * 100000, "nested"),
        ('{"text": "\udcff"}', "not UTF-8"),
    ],
)
def test_a_malformed_row_says_what_is_wrong(row, reason):
    with pytest.raises(ValueError) as error:
        parse_row(row, "row")
    assert reason in str(error.value) and "\n" not in str(error.value)


# --- files ---

LAYOUTS = {
    "lines": lambda rows: "\n".join(map(json.dumps, rows)) + "\n",
    "lines with a mark, blank lines and CRLF": lambda rows: (
        "\ufeff" + "\r\n\r\n".join(map(json.dumps, rows))
    ),
    "list": lambda rows: json.dumps(rows, ensure_ascii=False),
    "indented list": lambda rows: json.dumps(rows, indent=1),
    "list, a row a line": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "indented objects": lambda rows: "\n".join(json.dumps(r, indent=2) for r in rows),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_told_apart_by_content_whatever_their_name(tmp_path, layout, zipped):
    path = write(tmp_path / "notes.txt", LAYOUTS[layout](list(FORMS.values())), zipped)
    assert [said(d) for d in read_dialogues(path)] == [TALK] * len(FORMS)


@pytest.mark.parametrize(
    "text",
    ["[Chorus]\nla la\n", "{\\bf TeX} and more", "Hello.\n", "[1] a reference\n", " \n\n {x}"],
)
def test_what_is_no_json_is_one_text_as_it_stands(tmp_path, text):
    [document] = read_dialogues(write(tmp_path / "x.txt", text))
    assert document["text"] == text


def test_a_broken_first_line_does_not_turn_json_lines_into_text(tmp_path):
    path = write(tmp_path / "x", '{"text": "cut of\n' + '{"text": "whole"}\n' * 200)
    counts = collections.Counter()
    assert len(list(read_dialogues(path, counts=counts))) == 200
    assert counts == {"rows": 201, "dialogues": 200, "malformed": 1}


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    rows=st.lists(st.dictionaries(st.text(), ANY_JSON)),
    indent=st.none() | st.integers(0, 3),
    ascii=st.booleans(),
    chunk=st.integers(4, 40),
    listed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_values_read_as_a_stream_equal_those_of_json(rows, indent, ascii, chunk, listed):
    text = (
        json.dumps(rows, indent=indent, ensure_ascii=ascii)
        if listed
        else "\n ".join(json.dumps(r, indent=indent, ensure_ascii=ascii) for r in rows)
    )
    before, sources.CHUNK = sources.CHUNK, chunk
    try:
        assert [
            json.loads(value) for _, value in sources._values("f", io.BytesIO(text.encode()))
        ] == rows
    finally:
        sources.CHUNK = before


def test_a_malformed_element_of_a_list_is_named_by_row_and_line_and_does_not_hide_the_next(
    tmp_path, capsys
):
    good = '{"text": "a } ] \\" b"}'
    rows = [good] * 99 + ['{"text": oops}'] + ["17"] + [good] * 200
    path = write(tmp_path / "x.json", "[\n" + ",\n".join(rows) + "\n]")
    counts = collections.Counter()
    assert len(list(read_dialogues(path, counts=counts))) == 299
    assert counts["malformed"] == 2 and counts["rows"] == 301
    err = capsys.readouterr().err
    assert (
        f"{path} row 100, line 101: not JSON" in err and "row 101" in err and "not an object" in err
    )


def test_too_many_malformed_rows_stop_with_the_remedy_and_few_do_not(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", '{"text": "a"}\n' * 98 + "{oops\n" * 2)
    with pytest.raises(
        ValueError,
        match=r"2 of 100 rows are malformed \(2.0%\).*first: line 99: not JSON.*--max-bad-rows",
    ):
        list(read_dialogues(path))
    assert len(list(read_dialogues(path, max_bad=0.02))) == 98
    path = write(tmp_path / "y.jsonl", '{"text": "a"}\n' * 20 + "{oops\n" * 20)
    capsys.readouterr()
    list(read_dialogues(path, max_bad=1))
    err = capsys.readouterr().err.splitlines()
    assert len(err) == dialogues.SHOWN + 1 and "15 more malformed rows" in err[-1]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00a", "neither JSON nor text"),
        (b'[{"text": "a"}, {"text": "b', "does not close after row 1"),
        (b'[{"text": "a"}', "does not close"),
        (gzip.compress(b'{"text": "abc"}\n' * 3000)[:-20], "damaged gzip"),
        (b"\x1f\x8bnonsense", "damaged gzip"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, content, reason):
    path = write(tmp_path / "x", content)
    with pytest.raises(ValueError) as error:
        list(read_dialogues(path))
    assert (
        str(path) in str(error.value)
        and reason in str(error.value)
        and "\n" not in str(error.value)
    )


def test_a_folder_gives_its_files_in_order_and_passes_over_what_is_no_data(tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "b.jsonl", '{"text": "b"}')
    write(tmp_path / "deep" / "c.txt", "c")
    write(tmp_path / "README.md", "# about")
    write(tmp_path / ".hidden", '{"text": "no"}')
    write(tmp_path / "a.bin", '{"text": "a"}', zipped=True)
    assert [d["text"] for d in read_dialogues(tmp_path)] == ["a", "b", "c"]
    assert "README.md" in capsys.readouterr().err
    with pytest.raises(ValueError, match="does not exist"):
        list(read_dialogues(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file"):
        list(read_dialogues(tmp_path / "empty"))


@pytest.mark.parametrize("before, between, after", [(b"", b"\n", b""), (b"[", b",", b"]")])
def test_a_large_file_is_read_as_a_stream(tmp_path, before, between, after):
    row = json.dumps({"text": "x" * 10000}).encode()
    path = write(tmp_path / "large", before + between.join([row] * 3000) + after)
    list(
        raw_chunks(write(tmp_path / "small", before + row + after))
    )  # imports and tables that stay
    tracemalloc.start()
    assert sum(len(chunk) for chunk, _ in raw_chunks(path)) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6 < path.stat().st_size / 2


def test_a_tfds_directory_of_dialogues_or_texts_is_a_source(tmp_path):
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "conversations": tfds.features.Sequence(
                {"from": tfds.features.Text(), "value": tfds.features.Text()}
            ),
        }
    )
    writer = ArrayRecordWriter(
        str(tmp_path / "talk-train.array_record-00000-of-00001"), "group_size:1"
    )
    row = {"id": "é", "conversations": [{"from": who, "value": text} for who, text in TALK]}
    for _ in range(3):
        writer.write(features.serialize_example(features.encode_example(row)))
    writer.close()
    template = tfds.core.ShardedFileTemplate(
        tmp_path, dataset_name="talk", split="train", filetype_suffix="array_record"
    )
    info = tfds.core.SplitInfo(
        name="train", shard_lengths=[3], num_bytes=0, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(tmp_path), features=features, split_infos=[info], check_data=False
    )
    found = list(read_dialogues(tmp_path))
    assert len(found) == 3 and found[0] == row


# --- dialogues ---


def talk(*said, id="x"):
    return {"id": id, "conversations": [{"from": who, "value": text} for who, text in said]}


def test_an_answer_before_any_question_is_context_and_a_system_text_joins_the_next_question():
    assert turns(talk(("gpt", "a"), ("human", "b"), ("gpt", "c"))) == [
        ("gpt", "a", False),
        ("human", "b", False),
        ("gpt", "c", True),
    ]
    assert turns(talk(("system", "s"), ("human", "b"), ("gpt", "c"))) == [
        ("human", "s\n\nb", False),
        ("gpt", "c", True),
    ]
    assert turns(talk(("system", "s"), ("gpt", "c"))) == [
        ("human", "s", False),
        ("gpt", "c", False),
    ]
    assert turns(talk(("human", "b"), ("gpt", "c"), ("system", "s"))) == [
        ("human", "b", False),
        ("gpt", "c", True),
        ("human", "s", False),
    ]
    assert turns(talk(("human", "a"), ("human", "b"), ("gpt", "c"), ("gpt", "d")))[1:] == [
        ("human", "b", False),
        ("gpt", "c", True),
        ("gpt", "d", True),
    ]


def test_there_is_nothing_to_learn_from_blank_answers_or_answers_to_nobody():
    assert has_answer(talk(("human", "a"), ("gpt", "b")))
    assert not has_answer(talk(("human", "a"), ("gpt", " \n")))
    assert not has_answer(talk(("gpt", "b"), ("human", "a")))
    assert has_answer({"id": "", "text": "a"}) and not has_answer({"id": "", "text": " \n"})


def test_pieces_of_one_sharegpt_dialogue_and_copies_share_a_split_key():
    pieces = [talk(("human", "a"), id="UvdwCMU_0"), talk(("gpt", "b"), id="UvdwCMU_12")]
    assert split_key(pieces[0]) == split_key(pieces[1])
    assert split_key(talk(("human", "a"), ("gpt", "b"), id="1")) == split_key(
        talk(("human", "a"), ("gpt", "c"), id="2")
    )
    different = [
        talk(("human", "a"), id="sample_0"),
        talk(("human", "b"), id="sample_1"),
        talk(("gpt", "a"), id="1"),
        talk(("gpt", "ab"), id="1"),
        {"id": "", "text": "t"},
        {"id": "", "text": "u"},
        talk(("human", "\ud800"), id="3"),
    ]
    assert (
        len({split_key(d) for d in different}) == 6
    )  # one speaker or another, the same words are the same words
    assert np.int64(split_key(pieces[0])) == split_key(pieces[0])


@pytest.mark.parametrize(
    "pieces, whole",
    [
        ([(0, 4, "human"), (4, 6, "human"), (10, 2, "gpt")], True),
        ([(209, 17, "gpt"), (570, 2, "human")], True),  # pieces between them are missing
        ([(0, 3, "human"), (1, 5, "gpt"), (2, 2, "gpt")], True),  # n counts pieces
        ([(0, 2, "human"), (1, 2, "human"), (2, 2, "human")], False),
        ([(3, 2, "human"), (3, 2, "human")], False),
        ([(5, 2, "human")], True),
    ],
)
def test_pieces_are_pieces_only_where_they_continue_one_another(pieces, whole):
    assert continues(pieces) == continues(pieces[::-1]) == whole


# --- real data ---


@pytest.mark.parametrize(
    "name, rows, dialogues, note",
    [
        (
            "dialogues/sharegpt_en.json.gz",
            660,
            660,
            ("begins with the assistant (that turn is context)", 224),
        ),
        ("dialogues/sharegpt_zh.jsonl.gz", 600, 600, ("ends with the human", 4)),
        ("dialogues/baize_quora_ko.json.gz", 800, 800, ("ends with the human", 0)),
        ("dialogues/fastchat_dummy_conversation.json", 500, 500, ("ends with the human", 0)),
        ("hc3", 2000, 3489, ("ends with the human", 0)),
        ("alpaca", 3800, 3800, ("ends with the human", 0)),
        ("text/c4_demo.jsonl.gz", 300, 300, ("ends with the human", 0)),
        ("text/tinyshakespeare.txt", 1, 1, ("ends with the human", 0)),
    ],
)
def test_real_sources_are_read_whole(data_dir, name, rows, dialogues, note):
    counts, notes = collections.Counter(), collections.Counter()
    for dialogue in read_dialogues(data_dir / name, counts=counts):
        notes.update(peculiarities(dialogue))
    assert counts == {"rows": rows, "dialogues": dialogues, "malformed": 0}
    assert notes[note[0]] == note[1]


def test_real_dialogues_are_what_their_files_say(data_dir):
    raw = json.loads(gzip.decompress((data_dir / "dialogues/sharegpt_en.json.gz").read_bytes()))
    assert [
        {"id": d["id"], "conversations": d["conversations"]}
        for d in read_dialogues(data_dir / "dialogues/sharegpt_en.json.gz")
    ] == raw
    answers = [
        a
        for name in ("medicine", "open_qa", "wiki_csai")
        for line in gzip.open(data_dir / f"hc3/{name}.jsonl.gz", "rt", encoding="utf-8")
        for a in json.loads(line)["chatgpt_answers"]
    ]
    assert [d["conversations"][1]["value"] for d in read_dialogues(data_dir / "hc3")] == answers
