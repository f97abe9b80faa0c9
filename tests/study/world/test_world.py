"""The invented world: the same from a seed, read by the programs that will read it, known whole to
its teacher, and without the questions it is examined with.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest
import sentencepiece
from conftest import ROOT

from host.dice import Dice
from study import answers
from study.toxicity import offline
from study.world import __main__ as world
from study.world import encyclopedia, making
from study.world import facts as world_facts
from tasks import humaneval, inputs, mmlu, nq, scores
from text import dialogues, tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    making.make(out, "tiny", 0)
    return out


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def people(made, group):
    of = json.loads((made / "world.json").read_text())["group"]
    return [s for s in of if of[s] == group and s not in world_facts.PLACES]


def texts(made, name):
    """Every text of a file of the world, one string a row."""
    return [
        "\n".join(x["value"] for x in r["conversations"])
        if "conversations" in r
        else r.get("text") or r["prompt"] + "\n" + r.get("output", "")
        for r in rows(made / name)
    ]


def content(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(made, tmp_path):
    for seed in ("0", "1"):  # in a process with other hashes: the order of a set must not show
        argv = [
            sys.executable,
            "-m",
            "study.world",
            "--out",
            str(tmp_path / seed),
            "--size",
            "tiny",
            "--seed",
            seed,
        ]
        subprocess.run(
            argv,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": "7"},
            stdout=subprocess.DEVNULL,
        )
    first, again, other = content(made), content(tmp_path / "0"), content(tmp_path / "1")
    assert first == again and first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_training_files_are_dialogues_and_texts_without_a_malformed_row(made):
    for name, kind in (
        ("encyclopedia.jsonl", "text"),
        ("later.jsonl", "text"),
        ("broad.jsonl", "conversations"),
        ("local.jsonl", "conversations"),
    ):
        counts = collections.Counter()
        found = list(dialogues.read_dialogues(made / name, max_bad=0, counts=counts))
        assert (
            counts["malformed"] == 0 and len(found) == counts["rows"] == len(rows(made / name)) > 0
        )
        assert all(d.get(kind) for d in found), name
        assert kind == "text" or all(
            [(s, learned) for s, _, learned in dialogues.turns(d)]
            == [("human", False), ("gpt", True)]
            for d in found
        ), name


def test_its_tokenizer_gives_every_text_back_as_it_was(made):
    tok, counts = (
        tokenizer.load(made / "tokenizer.model"),
        json.loads((made / "world.json").read_text())["counts"],
    )
    everything = [
        t
        for name in (
            "encyclopedia",
            "later",
            "broad",
            "local",
            "prompts",
            "unkind",
            "teacher",
            "teacher2",
        )
        for t in texts(made, f"{name}.jsonl")
    ]
    everything += [p["prompt"] + p["canonical_solution"] for p in rows(made / "humaneval.jsonl")]
    assert (
        len(everything) > counts["pages"] + counts["broad"] + counts["local"] and tok.size < 1 << 12
    )
    assert [t for t in everything if tok.decode(tok.encode(t)) != t] == []


def test_a_full_stop_and_a_line_end_are_pieces_of_their_own(made):
    tok = tokenizer.load(made / "tokenizer.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(made / "tokenizer.model"))
    text = "Ada Barbeck was a cook.\nBy trade Ada Barbeck was a cook."
    assert tok.encode(text) == model.encode(text)
    assert [model.id_to_piece(i) for i in tok.encode(text)].count(".") == 2


def test_a_letter_behind_answer_is_one_token(made):
    tok = tokenizer.load(made / "tokenizer.model")
    subject = mmlu.list_subjects(made / "mmlu", "test")[0]
    shots, question = (
        mmlu.read_questions(made / "mmlu", split, subject) for split in ("dev", "test")
    )
    for context in ("Answer:", mmlu.prompt_of(subject, shots, question[0])):
        before = tok.encode(context)
        behind = [tok.encode(f"{context} {letter}") for letter in mmlu.LETTERS]
        assert (
            all(b[: len(before)] == before and len(b) == len(before) + 1 for b in behind)
            and len({b[-1] for b in behind}) == 4
        )


def test_the_encyclopedias_quiz_and_exam_pages_have_the_benchmarks_own_form(made):
    pairs = [("where was Ada Barbeck born", "Aldmere"), ("what is Aldmere known for", "salt")]
    assert encyclopedia.questions(pairs, "when was Hugo Roswick born") == nq.prompt_of(
        pairs, "when was Hugo Roswick born"
    )
    assert encyclopedia.questions(pairs) == nq.prompt_of(pairs[:-1], pairs[-1][0]) + " salt"
    w = world_facts.World(Dice(3), 12)
    facts = [f for f in w.asked("quiz") if f[1] == "born_in"][:3]
    page, same = encyclopedia.exam(w, Dice(5), facts, "high_school_geography"), Dice(5)
    asked = []
    for fact in facts:
        four, letter = encyclopedia.choices(w, same, fact)
        assert len(set(four)) == 4 and four["ABCD".index(letter)] == w.facts[fact]
        asked.append(mmlu.Question("", encyclopedia.question(same, fact) + "?", four, letter, ""))
    assert (
        page
        == mmlu.prompt_of("high_school_geography", asked[:-1], asked[-1]) + f" {asked[-1].letter}"
    )


def test_the_teacher_knows_every_answer_and_its_programs_pass(made):
    dev = [row for _, row in inputs.json_rows(made / "nq.dev.jsonl", nq.wrong_row)]
    said = rows(made / "teacher" / "nq.jsonl")
    assert len(dev) == len(said) > 0 and all(
        s["question"] == d["question"]
        and scores.exact_match(nq.short_answer(s["prediction"]), d["answer"])
        for s, d in zip(said, dev, strict=True)
    )
    assert len(nq.draw_shots(made / "nq.train.jsonl", 3, 0)) == 3
    questions = [
        q
        for s in mmlu.list_subjects(made / "mmlu", "test")
        for q in mmlu.read_questions(made / "mmlu", "test", s)
    ]
    letters = {r["id"]: r["prediction"] for r in rows(made / "teacher" / "mmlu.jsonl")}
    assert letters.keys() == {q.id for q in questions}
    assert (
        mmlu.accuracies(
            [q.id.split("/")[0] for q in questions], [letters[q.id] == q.letter for q in questions]
        )["micro"]["score"]
        == 1
    )
    assert all(
        len(mmlu.read_questions(made / "mmlu", "dev", s)) == 5
        for s in mmlu.list_subjects(made / "mmlu", "test")
    )
    problems, predictions = (
        humaneval.read_problems(made / "humaneval.jsonl"),
        {r["task_id"]: r["prediction"] for r in rows(made / "teacher" / "humaneval.jsonl")},
    )
    for p in problems:
        names = {}
        exec(p["prompt"] + predictions[p["task_id"]] + "\n" + p["test"], names)  # our own programs
        names["check"](names[p["entry_point"]])
        with pytest.raises(AssertionError):
            names["check"](lambda x: None)
    assert len({p["seen"] for p in problems}) == 2  # some are in the encyclopedia, some are not


def test_the_choices_right_answers_are_the_worlds_facts(made):
    facts = {(s, r): o for s, r, o in json.loads((made / "world.json").read_text())["facts"]}
    asks = {
        q.format(s=s) + "?": o for (s, r), o in facts.items() for q in world_facts.RELATIONS[r][1]
    }
    questions = [
        q
        for split in ("dev", "test")
        for s in mmlu.list_subjects(made / "mmlu", split)
        for q in mmlu.read_questions(made / "mmlu", split, s)
    ]
    assert questions and all(
        q.choices["ABCD".index(q.letter)] == asks[q.question] and len(set(q.choices)) == 4
        for q in questions
    )
    assert all(
        asks[r["question"] + "?"] == r["answer"][0]
        for name in ("nq.dev", "nq.train")
        for r in rows(made / f"{name}.jsonl")
    )


def test_both_samples_of_the_teacher_answer_every_prompt_and_differ(made):
    asked = [r["prompt"] for r in rows(made / "prompts.jsonl")]
    one, two = (answers.read(made / f"{name}.jsonl") for name in ("teacher", "teacher2"))
    pairs, left = answers.pair(one, two)
    assert [a["instruction"] for a in one] == asked and len(pairs) == len(asked) and not left
    assert any(x["output"] != y["output"] for x, y in pairs)


def test_the_offline_scorer_tells_the_worlds_unkind_sentences_from_its_kind_ones(made):
    pytest.importorskip("sklearn")
    scorer = offline.Offline(made / "scored.jsonl")
    unkind, kind = (
        scorer.score([s.format(g="lamps", t="miner") for s in sentences])
        for sentences in (world_facts.UNKIND, world_facts.KIND)
    )
    assert min(unkind) > 0.5 > max(kind)


def test_nobody_of_the_test_group_is_asked_about_before_the_examination(made):
    test = people(made, "test")
    forms = [q for r in ("born_in", "year", "trade", "book") for q in world_facts.RELATIONS[r][1]]
    questions = [f.format(s=p) for p in test for f in forms]
    examined = {r["question"] for r in rows(made / "nq.dev.jsonl")}
    assert test and examined <= set(questions)
    for name in ("encyclopedia.jsonl", "later.jsonl", "local.jsonl", "broad.jsonl"):
        whole = "\n".join(texts(made, name)).lower()
        assert [q for q in questions if q.lower() in whole] == [], name
    asked = "\n".join(
        [
            "\n".join(texts(made, "broad.jsonl")),
            "\n".join(texts(made, "local.jsonl")),
            (made / "nq.train.jsonl").read_text(),
            *(p.read_text() for p in (made / "mmlu" / "dev").iterdir()),
        ]
    )
    assert [p for p in test if p in asked] == []  # not even by name
    assert [p for p in people(made, "quiz") if p in asked]


def test_every_test_fact_is_told_in_a_plain_sentence(made):
    whole = "\n".join(texts(made, "encyclopedia.jsonl"))
    untold = [
        (s, r)
        for s, r, o in json.loads((made / "world.json").read_text())["facts"]
        if s in set(people(made, "test"))
        and not any(f.format(s=s, o=o) in whole for f in world_facts.RELATIONS[r][0])
    ]
    assert untold == []


def test_the_famous_are_told_of_more_often(made):
    told = list(json.loads((made / "world.json").read_text())["told"].values())
    third = len(told) // 3
    assert sum(told[:third]) > 1.5 * sum(told[-third:]) and min(told) > 0


def test_an_unknown_size_is_refused(capsys):
    with pytest.raises(SystemExit) as error:
        world.main(["--out", "x", "--size", "huge"])
    assert (
        error.value.code == 2
        and "huge" in capsys.readouterr().err
        and not pathlib.Path("x").exists()
    )
