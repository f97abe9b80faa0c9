"""Upstream forms read, pieces joined, turns cleaned, queries compared."""

import collections
import json

import pytest

from study.curate import upstream


def talk(name, *texts, first="human"):
    other = {"human": "gpt", "gpt": "human"}
    turns, who = [], first
    for text in texts:
        turns.append({"from": who, "value": text})
        who = other[who]
    return {"id": name, "conversations": turns}


def said(dialogue):
    return [t["value"] for t in dialogue["conversations"]]


def read(tmp_path, content, source, **more):
    file, counts = tmp_path / "file.json", collections.Counter()
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return list(upstream.read(file, source, counts, **more)), counts


# --- pieces ---


def test_pieces_are_joined_by_the_number_of_their_first_turn_whatever_their_order():
    notes = collections.Counter()
    pieces = [
        talk("AbCdEf1_10", "k", "l"),
        talk("AbCdEf1_2", *"cdefghij"),
        talk("AbCdEf1_0", "a", "b"),
    ]
    [whole] = upstream.join(pieces, notes)
    assert "".join(said(whole)) == "abcdefghijkl" and whole["id"] == "AbCdEf1_0"
    assert notes == {"pieces joined": 3}


def test_pieces_numbered_one_by_one_are_joined_where_each_goes_on_with_an_answer():
    notes = collections.Counter()
    [whole] = upstream.join(
        [talk("AbCdEf1_1", "b", "c", first="gpt"), talk("AbCdEf1_0", "a", "lost?")], notes
    )
    assert "".join(said(whole)) == "alost?bc" and notes["gaps between pieces"] == 0


def test_an_answer_after_a_gap_is_taken_out_and_counted():
    notes = collections.Counter()
    [whole] = upstream.join(
        [talk("AbCdEf1_0", "a", "b"), talk("AbCdEf1_7", "lost", "c", "d", first="gpt")], notes
    )
    assert "".join(said(whole)) == "abcd"
    assert (
        notes["gaps between pieces"] == 1
        and notes["answers after a gap, without their question, taken out"] == 1
    )


def test_a_piece_that_is_there_twice_counts_once_and_two_dialogues_of_one_id_stay_apart():
    notes = collections.Counter()
    [whole] = upstream.join(
        [talk("AbCdEf1_0", "a", "b"), talk("AbCdEf1_0", "a", "b"), talk("AbCdEf1_2", "c", "d")],
        notes,
    )
    assert "".join(said(whole)) == "abcd" and notes["pieces that were there twice"] == 1
    assert (
        len(upstream.join([talk("AbCdEf1_0", "a", "b"), talk("AbCdEf1_0", "x", "y")], notes)) == 2
    )


@pytest.mark.parametrize("name", ["identity", "medical", "quora_1"])
def test_numbered_dialogues_are_no_pieces(name):
    rows = [talk(f"{name}_{k}", "who are you?", "me", "ok", "yes") for k in range(200)]
    parts = [[r] for r in rows] if name != "medical" else [rows]  # seven letters, as ShareGPT's
    assert [d for part in parts for d in upstream.join(part, collections.Counter())] == rows


def test_an_answer_that_is_context_stays_context():
    turns = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b", "weight": 0},
        {"from": "gpt", "value": "c"},
        {"from": "gpt", "value": "d"},
    ]
    clean = upstream.clean({"id": "x", "conversations": turns}, collections.Counter())
    assert clean["conversations"] == [*turns[:2], {"from": "gpt", "value": "c\n\nd"}]


# --- forms ---


def test_hc3_keeps_the_chatgpt_answers_only_and_names_its_subset(tmp_path):
    rows = [
        {
            "question": "q",
            "human_answers": ["person"],
            "chatgpt_answers": ["one", "two"],
            "source": "medicine",
        },
        {"question": "r", "human_answers": ["person"], "chatgpt_answers": []},
    ]
    found, counts = read(tmp_path, "\n".join(map(json.dumps, rows)), "hc3")
    assert [said(d) for d in found] == [["q", "one"], ["q", "two"]] and found[0][
        "topic"
    ] == "medicine"
    assert counts["rows without a ChatGPT answer"] == 1 and "person" not in json.dumps(found)


def test_discord_pairs_are_read_from_json_lines(tmp_path):
    found, counts = read(
        tmp_path,
        '{"input": "hi", "output": "hello"}\n{"input": "hi"}\n{"input": 3, "output": "x"}\n',
        "discord",
        max_bad=1,
    )
    assert [said(d) for d in found] == [["hi", "hello"]] and counts["malformed"] == 2


def message(number, author, text, bot=False, to=None, **more):
    found = {
        "id": str(number),
        "type": "Reply" if to else "Default",
        "timestamp": f"2023-03-01T10:00:{number:02}.000+00:00",
        "timestampEdited": None,
        "callEndedTimestamp": None,
        "isPinned": False,
        "content": text,
        "author": {
            "id": author,
            "name": author,
            "discriminator": "0000",
            "nickname": author,
            "color": None,
            "isBot": bot,
            "roles": [],
            "avatarUrl": "",
        },
        "attachments": [],
        "embeds": [],
        "stickers": [],
        "reactions": [],
        "mentions": [],
    }
    return (
        found
        | ({"reference": {"messageId": str(to), "channelId": "2", "guildId": "1"}} if to else {})
        | more
    )


def export(*messages):
    return {
        "guild": {"id": "1", "name": "G", "iconUrl": ""},
        "channel": {
            "id": "2",
            "type": "GuildTextChat",
            "category": None,
            "name": "ask",
            "topic": None,
        },
        "dateRange": {"after": None, "before": None},
        "exportedAt": "2023-03-02T00:00:00+00:00",
        "messages": list(messages),
        "messageCount": len(messages),
    }


def channel(tmp_path, *messages, **more):
    found, counts = read(tmp_path, json.dumps(export(*messages), indent=2), "discord", **more)
    return [said(d) for d in found], counts


def test_a_bots_answer_belongs_to_the_message_it_replies_to(tmp_path):
    found, _ = channel(
        tmp_path,
        message(1, "ann", "q1"),
        message(2, "bob", "q2"),
        message(3, "bot", "a2", True, 2),
        message(4, "bot", "a1", True, 1),
    )
    assert found == [["q1", "a1"], ["q2", "a2"]]


def test_without_a_reply_it_belongs_to_the_last_message_before(tmp_path):
    found, counts = channel(
        tmp_path,
        message(1, "bot", "welcome", True),
        message(2, "ann", "q1"),
        message(3, "ann", "more"),
        message(4, "bot", "a1", True),
        message(5, "bot", "a1 goes on", True),
        message(6, "bob", "nobody answers"),
    )
    assert found == [["q1\nmore", "a1\na1 goes on"], ["nobody answers"]]
    assert counts["Discord bot messages whose question is not there"] == 1


def test_a_person_who_replies_to_the_answer_goes_on_with_the_dialogue(tmp_path):
    found, _ = channel(
        tmp_path,
        message(1, "ann", "q1"),
        message(2, "bot", "a1", True, 1),
        message(3, "ann", "q2", to=2),
        message(4, "bot", "a2", True, 3),
    )
    assert found == [["q1", "a1", "q2", "a2"]]


def test_addresses_embeds_and_system_messages(tmp_path):
    ask = message(
        1,
        "ann",
        "@Helper what is tea?",
        mentions=[{"id": "9", "name": "helper", "nickname": "Helper", "isBot": True}],
    )
    found, counts = channel(
        tmp_path,
        ask,
        message(2, "x", "joined", type="GuildMemberJoin"),
        message(3, "bot", "", True, 1, embeds=[{"description": "A drink."}]),
    )
    assert found == [["what is tea?", "A drink."]]
    assert counts["Discord messages without text, or by the system"] == 1


def test_a_slash_commands_answer_has_no_question(tmp_path):
    found, counts = channel(
        tmp_path,
        message(1, "ann", "chat"),
        message(
            2,
            "bot",
            "a",
            True,
            type="20",
            interaction={"id": "7", "name": "ask", "user": {"id": "ann"}},
        ),
    )
    assert found == [["chat"]] and counts["Discord bot messages whose question is not there"] == 1


def test_malformed_messages_are_counted(tmp_path):
    found, counts = channel(
        tmp_path,
        message(1, "ann", "q"),
        {"id": "2"},
        "junk",
        message(3, "bot", "a", True),
        max_bad=1,
    )
    assert found == [["q", "a"]] and counts["malformed"] == 2


def test_the_share_of_malformed_messages_is_of_the_messages(tmp_path):
    many = [
        m
        for k in range(150)
        for m in (message(2 * k, "ann", f"q{k}"), message(2 * k + 1, "bot", "a", True))
    ]
    found, counts = channel(tmp_path, *many, {"id": "x"}, {"id": "y"})
    assert len(found) == 150 and counts["malformed"] == 2 and counts["Discord messages"] == 302


def test_text_that_is_not_utf8_is_malformed(tmp_path):
    (tmp_path / "f.json").write_bytes(
        json.dumps([talk("a_0", "q", "a")] * 2).encode()[:-1]
        + b', {"id": "b_0", "conversations": [{"from": "human", "value": "\xff"}]}]'
    )
    counts = collections.Counter()
    assert (
        len(list(upstream.read(tmp_path / "f.json", "sharegpt", counts, max_bad=1))) == 2
        and counts["malformed"] == 1
    )


def test_malformed_rows_are_counted_and_too_many_are_one_line(tmp_path, capsys):
    good = json.dumps(talk("a_0", "q", "a"))
    found, counts = read(tmp_path, good + "\n{broken\n", "sharegpt", max_bad=0.5)
    assert len(found) == 1 and counts["rows"] == 2 and counts["malformed"] == 1
    with pytest.raises(ValueError, match=r"1 of 2 rows are malformed"):
        read(tmp_path, good + "\n{broken\n", "sharegpt", max_bad=0.1)
    with pytest.raises(ValueError, match="malformed"):
        read(tmp_path, "just some prose", "sharegpt")


# --- cleaning ---


def test_empty_turns_go_and_neighbours_by_one_speaker_are_merged():
    notes = collections.Counter()
    d = {
        "id": "x",
        "conversations": [
            {"from": w, "value": v}
            for w, v in (
                ("human", "a"),
                ("gpt", " \n"),
                ("human", "b"),
                ("gpt", "c"),
                ("gpt", "d"),
                ("human", ""),
            )
        ],
    }
    assert upstream.clean(d, notes)["conversations"] == [
        {"from": "human", "value": "a\n\nb"},
        {"from": "gpt", "value": "c\n\nd"},
    ]
    assert notes["empty turns taken out"] == 2 and notes["turns merged with the one before"] == 2


def test_the_pager_goes_only_in_html_exports():
    page = '<div class="markdown prose"><p>A cup.</p></div>'
    assert said(upstream.clean(talk("x", "1 / 2How much?", page), collections.Counter())) == [
        "How much?",
        "A cup.",
    ]
    assert said(upstream.clean(talk("x", "1 / 2How much?", "A cup."), collections.Counter())) == [
        "1 / 2How much?",
        "A cup.",
    ]


def test_cleaning_does_not_change_what_it_was_given():
    d = talk("x", "a", "Copy code\nb")
    upstream.clean(d, collections.Counter())
    assert said(d) == ["a", "Copy code\nb"]


# --- queries ---


def test_queries_are_compared_without_case_width_space_and_closing_marks():
    assert (
        upstream.normalised("  What  is\nTEA ?!")
        == upstream.normalised("what is tea")
        == upstream.normalised("ｗｈａｔ is tea.")
    )
    assert upstream.normalised("What is C++?") != upstream.normalised("What is C?")


def test_the_key_is_the_first_query_or_all_of_them():
    a, b = talk("x", "q", "1", "r", "2"), talk("y", "Q?", "3", "s", "4")
    assert upstream.query_key(a, "first") == upstream.query_key(b, "first") and upstream.query_key(
        a, "all"
    ) != upstream.query_key(b, "all")


def test_a_dialogue_without_its_beginning_is_compared_by_all_its_queries():
    a, b = (
        talk("AbCdEf1_4", "continue", "1", "r", "2"),
        talk("AbCdEf2_4", "continue", "1", "s", "2"),
    )
    assert upstream.query_key(a, "first") != upstream.query_key(b, "first")
    headless = (
        talk("x", "1", "continue", first="gpt"),
        talk("x", "1", "continue", "2", "more", first="gpt"),
    )
    assert upstream.query_key(headless[0], "first") != upstream.query_key(headless[1], "first")
    assert upstream.query_key(
        talk("x", "one text", "continue", first="gpt"), "all"
    ) != upstream.query_key(talk("x", "another", "continue", first="gpt"), "all")
