"""The language filter: English and the unsure stay, Chinese, Korean, French go; code and addresses
say nothing.
"""

import socket

import pytest

from study.curate import language
from text import dialogues


def said(*turns):
    return {
        "id": "x",
        "conversations": [
            {"from": "human" if k % 2 == 0 else "gpt", "value": t} for k, t in enumerate(turns)
        ],
    }


ENGLISH = (
    "Could you explain to me how photosynthesis works in plants, and why it matters for the "
    "rest of us?"
)
FRENCH = (
    "Pourriez-vous m'expliquer comment fonctionne la photosynthèse chez les plantes, et "
    "pourquoi elle est importante ?"
)


@pytest.mark.parametrize(
    "dialogue, english",
    [
        (said(ENGLISH, ENGLISH), True),
        (said(FRENCH, FRENCH), False),
        (said("解释光合作用", "光合作用是植物利用阳光的过程。"), False),
        (said("광합성을 설명해 주세요", "광합성은 식물이 햇빛을 이용하는 과정입니다."), False),
        (said("Объясни фотосинтез", "Это процесс, при котором растения питаются."), False),
        (said("Translate to French: " + ENGLISH, FRENCH), True),
        (said("hi", "ok"), True),
        (said("42", "🙂"), True),
        (said("", ""), True),
    ],
)
def test_english_and_the_unsure_are_kept(dialogue, english):
    assert language.is_english(dialogue) is english


def test_code_is_no_language():
    code = (
        "```python\nfor schlange in garten:\n"
        "    drucke(schlange, 'Die Schlange ist im Garten und frisst die Maus')\n```\n"
    ) * 5
    assert language.is_english(said("Explain this", code + ENGLISH))
    assert not language.is_english(
        said(
            "解释代码",
            (
                "```python\nfor line in open(path):\n    print('the line is', line)\n```\n"
                "这段代码逐行读取文件并打印每一行。"
            ),
        )
    )


def test_prose_leaves_out_code_addresses_and_tags():
    assert (
        language.prose("one\n```js\nlet x\n```\ntwo `y` https://a.b/c <br/> me@x.org three 1 < 2")
        == "one two three 1 < 2"
    )


def test_shares_sum_to_one():
    for dialogue in (said(ENGLISH, FRENCH), said("解释", ENGLISH), said("x", "y"), said("", "")):
        assert sum(language.shares(dialogue)) == pytest.approx(1)


def test_an_unsure_detector_drops_nothing():
    assert language.is_english(said(FRENCH, FRENCH), lambda text: ("fr", 0.7))
    assert not language.is_english(said(FRENCH, FRENCH), lambda text: ("fr", 0.9))


def test_nothing_is_fetched(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert language.fast(ENGLISH)[0] == "en"


def test_real_dialogues_are_told_apart(data_dir):
    for name, english in (
        ("sharegpt_en.json.gz", True),
        ("sharegpt_zh.jsonl.gz", False),
        ("baize_quora_ko.json.gz", False),
    ):
        found = [
            language.is_english(d) for d in dialogues.read_dialogues(data_dir / "dialogues" / name)
        ]
        assert sum(f is english for f in found) / len(found) >= 0.99, name


def test_the_command_lists_what_is_not_english(tmp_path, capsys):
    import json

    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps(said(t, t) | {"id": i}) + "\n"
            for i, t in (("e", ENGLISH), ("f\x1b[2J", FRENCH))
        )
    )
    assert language.main([str(tmp_path / "a.jsonl")]) == 0
    out, err = capsys.readouterr()
    assert (
        out.count("\n") == 1
        and "\x1b" not in out
        and "Pourriez" in out
        and "1 English or unsure, 1 not English" in err
    )
    assert language.main([str(tmp_path / "no")]) == 2
