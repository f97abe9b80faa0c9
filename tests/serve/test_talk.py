"""A talk with several models, without HTTP: what each reads, hidden names, votes, the way out."""

import collections
import json
import time

import pytest
from conftest import ROOT
from scripted_engine import ScriptedEngine

from serve import talk
from serve.protocol import Limits
from serve.talk import Forgotten, Refused, Talks
from study.rate import __main__ as rate
from web.votes import Store

NAMES = ("base", "imitation", "teacher")


def echo(name):
    """A model that says its name and how often it was asked."""
    return lambda turns: [f"{name} ", "says ", str(sum(t["from"] == "human" for t in turns))]


@pytest.fixture
def engine():
    return ScriptedEngine({name: echo(name) for name in NAMES})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "votes.sqlite", [], per_item=1)


def hear(stream):
    """All events of a stream."""
    events = []
    while not stream.done:
        events += stream.read(1)
    stream.close()
    return events


def ask(talks, question="why?", models=NAMES, **more):
    """(id of the round, its events)."""
    events = hear(talks.ask(question, list(models), **more))
    return events[0]["round"], events


def test_every_model_answers_and_the_pieces_are_its_answer(engine):
    _, events = ask(Talks(engine))
    assert events[0] | {"round": 0, "seed": 0} == {
        "round": 0, "names": list(NAMES), "count": 3, "notes": [], "seed": 0,
    }  # fmt: skip
    for place, name in enumerate(NAMES):
        mine = [e for e in events if e.get("place") == place]
        assert f"{name} says 1".startswith("".join(e.get("text", "") for e in mine))
        assert mine[-1]["html"] == f"<p>{name} says 1</p>\n" and mine[-1]["end"] == "stop"
        assert mine[-1]["stats"]["tokens"] == 3


def test_each_model_reads_its_own_answers_and_the_system_text(engine):
    talks = Talks(engine)
    first, _ = ask(talks, "one?")
    second, _ = ask(talks, "two?", parent=first, system="Be brief.")
    read = {model: turns for model, turns, _ in engine.asked[3:]}
    for name in NAMES:
        said = [("human", "one?"), ("gpt", f"{name} says 1"), ("human", "two?")]
        assert [(t["from"], t["value"]) for t in read[name]] == [("system", "Be brief."), *said]
    ask(talks, "three?", parent=first)  # the second edited, or asked again
    assert [t["value"] for t in engine.asked[-1][1]][1:] == [
        f"{engine.asked[-1][0]} says 1",
        "three?",
    ]
    assert second in talks.rounds


def test_settings_reach_the_engine_and_a_seed_is_drawn(engine):
    talks = Talks(engine)
    ask(talks, settings={"temperature": 1.5, "max_tokens": 2, "seed": 7})
    sampling = engine.asked[-1][2]
    assert (sampling.temperature, sampling.max_new, sampling.seed) == (1.5, 2, 7)
    seeds = {ask(talks)[1][0]["seed"] for _ in range(5)}
    assert len(seeds) == 5 and engine.asked[-1][2].seed in seeds


def test_names_are_hidden_from_all_that_is_sent_until_the_vote(engine, store):
    talks, orders = Talks(engine, store), collections.Counter()
    parent = None
    for _ in range(40):
        id, events = ask(talks, parent=parent, blind=True)
        plain = json.dumps([e for e in events if "text" not in e and "html" not in e])
        assert not any(name in plain for name in NAMES) and events[0]["names"] is None
        assert all(e["stats"] is None for e in events if "end" in e)
        shown = tuple(e["html"].split()[0][3:] for e in sorted(
            (e for e in events if "end" in e), key=lambda e: e["place"]))  # fmt: skip
        told = talks.vote(id, "1", "me")
        assert tuple(told["names"]) == shown and told["answers"][0]["stats"]["tokens"] == 3
        orders[shown] += 1
        parent = id
    assert len(orders) == 6, "the order is drawn anew at each question"
    assert talks.rounds[parent].parent and engine.asked[-1][1][-2]["value"].endswith("39")


def test_a_failure_names_no_hidden_model(engine, store):
    engine.speak["imitation"] = lambda turns: ["half", None]
    id, events = ask(Talks(engine, store), blind=True)
    failed = [e for e in events if e.get("end") == "failed"]
    assert [e["note"] for e in failed] == [talk.HIDDEN_REASON]
    talks = Talks(engine, store)
    id, _ = ask(talks, blind=True)
    assert "the model imitation broke" in [a["note"] for a in talks.reveal(id)["answers"]]


def refuse(turns):
    raise ValueError("the prompt is too long for base")


def test_a_model_that_cannot_take_a_question_fails_alone(engine):
    engine.speak["base"] = refuse
    _, events = ask(Talks(engine))
    ends = {e["place"]: (e["end"], e["note"]) for e in events if "end" in e}
    assert ends == {
        0: ("failed", "the prompt is too long for base"),
        1: ("stop", ""),
        2: ("stop", ""),
    }


def test_a_question_that_is_too_long_or_a_model_without_a_template_is_said(engine):
    talks = Talks(engine, limits=Limits(prompt_tokens=100))
    engine.models["teacher"].template = None
    _, events = ask(talks, "long " * 20)
    notes = [e["note"] for e in events if "end" in e]
    assert notes[:2] == [f"the question has 132 tokens: {n} takes 100 at most" for n in NAMES[:2]]
    assert "--template" in notes[2] and engine.asked == []


def test_the_oldest_turns_go_where_a_talk_no_longer_fits_and_that_is_said(engine):
    engine = ScriptedEngine({"base": lambda turns: ["a" * 150]}, positions=650)
    talks, parent, notes = Talks(engine), None, []
    for n in range(4):
        parent, events = ask(talks, f"q{n}", ["base"], parent=parent, settings={"max_tokens": 99})
        notes += events[0]["notes"]
        assert events[-1]["end"] == "stop"
    assert len(notes) == 1 and "no longer fits" in notes[0]
    assert [t["value"] for t in engine.asked[-1][1]][0] != "q0"


def forever(turns):
    while True:
        yield "on "


def test_stopping_and_hanging_up_free_the_slots_and_what_was_said_is_kept():
    engine = ScriptedEngine({"a": forever, "b": forever}, pause=0.002)
    talks = Talks(engine)
    for end in ("stop", "hang up"):
        stream = talks.ask("go", ["a", "b"])
        events = stream.read(1)
        while sum("text" in e for e in events) < 4:
            events += stream.read(1)
        if end == "stop":
            talks.stop(stream.round.id)
            last = hear(stream)[-2:]
            assert {e["end"] for e in last} == {"stopped"} and "on on" in last[0]["html"]
        stream.close()
        assert stream.done and all(a.reason == "stopped" for a in stream.round.answers)
        assert talks.export(stream.round.id)[0]["conversations"][1]["weight"] == 0
    until = time.monotonic() + 30
    while engine.running and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.running == 0 and engine.cancelled == 4


@pytest.mark.parametrize(
    "question, models, says",
    [
        (" ", NAMES, "empty"),
        ("x" * 200_001, NAMES, "200001 characters"),
        ("q", [], "0 models"),
        ("q", ["base", "base"], "different"),
        ("q", ["gpt-4"], "gpt-4"),
    ],
)
def test_what_cannot_be_asked_is_said(engine, question, models, says):
    with pytest.raises(ValueError, match=says):
        Talks(engine).ask(question, list(models))


def test_talks_that_take_too_much_are_forgotten_the_oldest_first(engine, monkeypatch):
    monkeypatch.setattr(talk, "KEPT", 10 * 4100)
    talks = Talks(engine)
    root, _ = ask(talks)
    other, _ = ask(talks)
    for _ in range(12):
        ask(talks, parent=root)  # the talk that goes on stays
    assert root in talks.rounds and other not in talks.rounds and len(talks.rounds) <= 10
    for call in (talks.stop, talks.reveal, talks.export):
        with pytest.raises(Forgotten):
            call(other)


# --- finished blocks ---


TEXT = "# a\n\nb\nc\n\n- d\n\n```py\n\nx\n\n```\n\n~~~~\n```\n\n~~~~\nlast\n\n\n\nend"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_blocks_are_cut_at_blank_lines_outside_of_code(size):
    blocks, done = talk.Blocks(), []
    for start in range(0, len(TEXT), size):
        done.append(blocks.add(TEXT[start : start + size]))
    assert "".join(done) + blocks.rest == TEXT and blocks.rest == "end"
    if size == 1:
        code = ["```py\n\nx\n\n```\n\n", "~~~~\n```\n\n~~~~\nlast\n\n"]
        assert [d for d in done if d.strip()] == ["# a\n\n", "b\nc\n\n", "- d\n\n", *code]


def test_a_finished_block_comes_as_html_and_the_rest_as_text(engine):
    engine.speak["base"] = lambda turns: ["**a**\n", "\nb <", "i> \u202e", "c"]
    _, events = ask(Talks(engine), models=["base"])
    html = [e for e in events if "html" in e]
    assert [(e["html"], e.get("rest")) for e in html[:-1]] == [
        ("<p><strong>a</strong></p>\n", "b <")
    ]
    assert html[-1]["html"].endswith("<p>b &lt;i&gt; U+202Ec</p>\n")
    assert not any("\u202e" in json.dumps(e, ensure_ascii=False) for e in events)


# --- votes ---


def test_votes_of_a_talk_are_read_by_the_reader_of_the_rating_page(engine, store, capsys, tmp_path):
    talks, pair = Talks(engine, store), ("imitation", "teacher")
    for n, better in enumerate(("teacher", "imitation", "teacher", "equal")):
        first, _ = ask(talks, f"question {n}", pair, blind=True)
        choice = better
        if better != "equal":
            choice = str([a.model for a in talks.rounds[first].answers].index(better))
        assert set(talks.vote(first, choice, "me")["names"]) == set(pair)
    out = tmp_path / "out"
    assert rate.main(["results", "--db", str(store.path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "A imitation, B teacher: 4 items, 4 votes, 1 raters" in said
    assert "win 1, tie 1 (no majority in 0), lose 2" in said
    result = json.loads((out / "results.json").read_text())
    assert (result["model"], result["settings"]["teacher"], result["n"]) == (*pair, 4)
    sample = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"] == "question 0" and sample["output"] == "imitation says 1"
    assert sample["teacher"] == "teacher says 1" and sample["extracted"] == "B better"


def test_the_best_of_three_is_better_than_each_of_the_others(engine, store, capsys):
    talks = Talks(engine, store)
    first, _ = ask(talks)
    talks.vote(first, "1", "me")
    second, _ = ask(talks, "and then?", parent=first)
    talks.vote(second, "equal", "me")
    votes = {(v["models"]["a"], v["models"]["b"], v["instruction"]): v for v in store.votes()}
    assert {(a, b): v["choice"] for (a, b, q), v in votes.items() if q == "why?"} == {
        ("base", "imitation"): "b", ("imitation", "teacher"): "a",
    }  # fmt: skip
    assert len(votes) == 5 and {
        v["choice"] for v in votes.values() if "then" in v["instruction"]
    } == {"tie"}
    assert rate.main(["results", "--db", str(store.path)]) == 0
    assert capsys.readouterr().out.count("raters\n") == 3
    assert rate.main(["results", "--db", str(store.path), "--pair", "base", "teacher"]) == 0
    assert "A base, B teacher: 1 items" in capsys.readouterr().out
    for wrong, says in (
        (["--pair", "x", "y"], "--pair x y"),
        (["--out", "o"], "choose with --pair"),
    ):
        assert rate.main(["results", "--db", str(store.path), *wrong]) == 2
        assert says in capsys.readouterr().err


def test_what_was_said_and_how_it_was_asked_is_kept_with_the_vote(engine, store):
    talks = Talks(engine, store)
    first, _ = ask(talks, settings={"seed": 5})
    second, _ = ask(talks, "so?", NAMES[:2], parent=first, blind=True, system="s")
    talks.vote(second, "0", "me")
    with store.transaction() as c:
        (row,) = c.execute("select * from talks").fetchall()
    kept = json.loads(row["settings"])
    assert kept["blind"] and kept["system"] == "s" and kept["beside"] == 2
    assert [t["value"] for t in kept["talk"]["a"]] == ["why?", "base says 1", "so?", "base says 2"]


def test_a_vote_counts_once_and_cannot_be_turned(engine, store):
    talks = Talks(engine, store)
    id, _ = ask(talks, blind=True)
    assert talks.vote(id, "2", "me") == talks.vote(id, "2", "me")
    for other in ("0", "equal"):
        with pytest.raises(Refused, match="vote already"):
            talks.vote(id, other, "me")
    assert len(store.votes()) == 2


def test_no_vote_without_two_answers_a_file_or_the_names_hidden(engine, store):
    engine.speak["base"] = lambda turns: []
    talks = Talks(engine, store)
    id, _ = ask(talks, models=NAMES[:2])
    with pytest.raises(Refused, match="two finished answers"):
        talks.vote(id, "0", "me")
    stream = talks.ask("q", ["imitation", "teacher"])
    with pytest.raises(Refused, match="two finished answers"):
        talks.vote(stream.round.id, "0", "me")
    hear(stream)
    for choice in ("2", "-1", "first", ""):
        with pytest.raises(ValueError, match="choice"):
            talks.vote(stream.round.id, choice, "me")
    id, _ = ask(talks, models=NAMES[1:], blind=True)
    talks.reveal(id)
    with pytest.raises(Refused, match="before the vote"):
        talks.vote(id, "0", "me")
    assert store.votes() == []
    talks = Talks(engine)
    id, _ = ask(talks)
    with pytest.raises(Refused, match="--votes"):
        talks.vote(id, "0", "me")


def test_a_file_of_a_rating_is_no_file_of_a_talk(tmp_path):
    items = [{"id": 1, "instruction": "q", "a": "x", "b": "y"}]
    Store(tmp_path / "v", items)
    with pytest.raises(ValueError, match="other inputs"):
        Store(tmp_path / "v", [], per_item=1)
    Store(tmp_path / "t", [], per_item=1)
    with pytest.raises(ValueError, match="other inputs"):
        Store(tmp_path / "t", items)
    assert Store(tmp_path / "t", [], per_item=1).votes() == []


# --- the way out ---


def test_a_talk_leaves_as_sharegpt_rows_one_a_model(engine, store):
    talks = Talks(engine, store)
    first, _ = ask(talks)
    second, _ = ask(talks, "more?", parent=first, blind=True, settings={"max_tokens": 2})
    with pytest.raises(Refused, match="hidden"):
        talks.export(second)
    talks.vote(second, "equal", "me")
    rows = {row["model"]: row for row in talks.export(second)}
    assert list(rows) == list(NAMES)
    assert rows["teacher"]["conversations"] == [
        {"from": "human", "value": "why?"},
        {"from": "gpt", "value": "teacher says 1"},
        {"from": "human", "value": "more?"},
        {"from": "gpt", "value": "teacher says ", "weight": 0},
    ]


def test_an_exported_talk_is_packed_by_data_py(engine, tmp_path, capsys):
    import data

    talks = Talks(engine)
    first, _ = ask(talks, system="Be brief.")
    second, _ = ask(talks, "more?", parent=first, system="Be brief.", settings={"max_tokens": 2})
    (tmp_path / "talk.json").write_text(json.dumps(talks.export(second)))
    out, tok = str(tmp_path / "packed"), str(ROOT / "samples")
    argv = [str(tmp_path / "talk.json"), "--out", out, "--pack", "rows", "--block", "128"]
    assert data.main(["pack", *argv, "--tokenizer", tok, "--template", "roles"]) == 0
    assert "3 dialogues" in capsys.readouterr().out
    for row in range(3):
        assert data.main(["show", out, "--row", str(row), "--tokenizer", tok]) == 0
        said = capsys.readouterr().out
        assert "Be brief." in said and "says 1" in said and "more?" in said
