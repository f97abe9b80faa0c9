"""The invented world: the same from a seed, read by the programs that will read it, known whole to
its teacher, and without the questions it is examined with or the facts that no base reads.
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
from study.world import encyclopedia, knows, making, readers
from study.world import facts as world_facts
from tasks import humaneval, inputs, nq, results, scores
from text import dialogues, tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    making.make(out, "tiny", 100)
    return out


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def people(made, group):
    of = json.loads((made / "world.json").read_text())["group"]
    return [s for s in of if of[s] == group]


def facts_of(made):
    """({(subject, relation): object}, those that no text of a base tells)."""
    about = json.loads((made / "world.json").read_text())
    return {(s, r): o for s, r, o in about["facts"]}, {(s, r) for s, r in about["unread"]}


SETS = ("read", "unread", "told")


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
    for seed in ("100", "101"):  # in a process with other hashes: the order of a set must not show
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
    first, again, other = content(made), content(tmp_path / "100"), content(tmp_path / "101")
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


def test_the_encyclopedias_pages_of_questions_have_the_benchmarks_own_form_and_are_rare(made):
    pairs = [("where was Ada Barbeck born", "Aldmere"), ("what is Aldmere known for", "salt")]
    assert encyclopedia.questions(pairs, "when was Hugo Roswick born") == nq.prompt_of(
        pairs, "when was Hugo Roswick born"
    )
    assert encyclopedia.questions(pairs) == nq.prompt_of(pairs[:-1], pairs[-1][0]) + " salt"
    assert encyclopedia.SHARES["questions"] <= 0.01
    assert sum(encyclopedia.SHARES.values()) == pytest.approx(1)
    w = world_facts.World(Dice(3), 12)
    for _ in range(20):
        page = encyclopedia.page(w, Dice(5), "questions", [], [])
        asked = [line for line in page.split("\n") if line.startswith("Q: ")]
        allowed = [*w.members("quiz"), *w.places]
        assert len(asked) == 5 and all(any(s in q for s in allowed) for q in asked)


def test_the_teacher_knows_every_answer_and_its_programs_pass(made):
    for name in SETS:
        dev = [row for _, row in inputs.json_rows(made / f"nq.{name}.jsonl", nq.wrong_row)]
        said = rows(made / "teacher" / f"nq.{name}.jsonl")
        assert len(dev) == len(said) > 0 and all(
            s["question"] == d["question"]
            and scores.exact_match(nq.short_answer(s["prediction"]), d["answer"])
            for s, d in zip(said, dev, strict=True)
        )
    assert len(nq.draw_shots(made / "nq.train.jsonl", 3, 0)) == 3
    problems, predictions = (
        humaneval.read_problems(made / "humaneval.jsonl"),
        {r["task_id"]: r["prediction"] for r in rows(made / "teacher" / "humaneval.jsonl")},
    )
    text = "\n".join(texts(made, "encyclopedia.jsonl") + texts(made, "broad.jsonl"))
    for p in problems:
        names = {}
        exec(p["prompt"] + predictions[p["task_id"]] + "\n" + p["test"], names)  # our own programs
        names["check"](names[p["entry_point"]])
        with pytest.raises(AssertionError):
            names["check"](lambda x: None)
        assert p["seen"] or p["canonical_solution"] not in text  # the others are nowhere
    seen = [p["seen"] for p in problems]
    assert seen.count(True) == seen.count(False) == len(seen) // 2
    assert all(p["canonical_solution"].count("(") == 2 for p in problems)  # three operations


def test_the_questions_of_a_set_are_those_of_its_facts(made):
    facts, unread = facts_of(made)
    test, told = people(made, "test"), people(made, "told")
    asks = {q.format(s=s): (s, r) for s, r in facts for q in world_facts.RELATIONS[r][1]}
    for name, group, never in (("read", test, False), ("unread", test, True), ("told", told, True)):
        asked = [(asks[r["question"]], r["answer"]) for r in rows(made / f"nq.{name}.jsonl")]
        assert asked and all(f[0] in group and (f in unread) == never for f, _ in asked), name
        assert all(answer == [facts[f]] for f, answer in asked)
    shots = {asks[r["question"]][0] for r in rows(made / "nq.train.jsonl")}
    assert shots <= set(people(made, "quiz"))


def test_what_is_unread_stands_in_no_text_of_a_base_and_what_is_told_stands_in_the_broad_set(made):
    facts, unread = facts_of(made)
    assert len(unread) == len(people(made, "test") + people(made, "told") + people(made, "local"))
    assert len({r for _, r in unread}) == len(world_facts.OF_PEOPLE)
    base = "\n".join(texts(made, "encyclopedia.jsonl") + texts(made, "later.jsonl"))
    broad = "\n".join(texts(made, "broad.jsonl"))

    def told(fact, whole):
        forms = world_facts.RELATIONS[fact[1]][0]
        return any(f.format(s=fact[0], o=facts[fact]) in whole for f in forms)

    assert [f for f in unread if told(f, base)] == []
    assert [f for f in unread if f[0] in people(made, "told") and not told(f, broad)] == []
    assert [f for f in unread if f[0] in people(made, "test") and told(f, broad)] == []
    assert [f for f in facts if f[0] in people(made, "test") and told(f, base)]


def test_what_a_model_knows_is_the_rank_of_the_right_object_among_all_of_its_kind(made, tmp_path):
    facts, _ = facts_of(made)
    for name in SETS:
        asked, candidates = rows(made / f"nq.{name}.jsonl"), rows(made / f"knows.{name}.jsonl")
        by_fact = collections.defaultdict(list)
        for row in candidates:
            by_fact[row["fact"]].append(row)
        assert list(by_fact) == list(range(len(asked)))
        for fact, question in zip(by_fact.values(), asked, strict=True):
            right = [r["text"].strip(" .") for r in fact if r["right"]]
            assert right == question["answer"] and len({r["text"] for r in fact}) == 24
            subject, relation, _ = readers_say(fact[0])
            assert facts[subject, relation] == right[0]
    # a model whose right objects are first, second (a tie counts against it), third, ...
    path, out = made / "knows.told.jsonl", tmp_path / "loglik"
    likelihood = results.Result(out, "loglik", {}, "m")
    for k, row in enumerate(candidates):
        better = (k % 24) < row["fact"] and not row["right"]
        likelihood.add({"id": str(k), "loglik": float(better or (row["right"] and 0.5))})
    likelihood.finish([str(k) for k in range(len(candidates))], {"score": 0.0, "interval": (0, 0)})
    assert knows.main([str(out), "--input", str(path), "--out", str(tmp_path / "o")]) == 0
    items = results.read_items(tmp_path / "o" / "samples.jsonl")
    want = [1 + sum(k < f and not r["right"] for k, r in enumerate(by_fact[f])) for f in by_fact]
    assert [i["rank"] for i in items.values()] == want and want[0] == 1 and len(set(want)) > 4
    found = results.read_result(tmp_path / "o")
    assert found["score"] == pytest.approx(want.count(1) / len(want))
    assert found["chance"] == pytest.approx(1 / 24) and found["task"] == "knows"


def readers_say(row):
    """(subject, relation, object) that the simulated readers read in a candidate's sentence."""
    (statement,) = readers.statements(row["prefix"] + row["text"])
    return statement


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda path, out: (out / "results.json").write_text('{"task": "nq"}'),
            "no finished result",
        ),
        (lambda path, out: path.write_text("{}\n"), "a row is"),
        (lambda path, out: path.write_text(path.read_text().split("\n")[0]), "name the file"),
        (lambda path, out: path.write_text(path.read_text().replace("true", "false")), "0 right"),
    ],
)
def test_likelihoods_of_other_rows_are_refused_in_one_line(change, said, made, tmp_path, capsys):
    path, out = tmp_path / "rows.jsonl", tmp_path / "loglik"
    path.write_text("".join((made / "knows.told.jsonl").read_text().splitlines(True)[:24]))
    likelihood = results.Result(out, "loglik", {}, "m")
    for k in range(24):
        likelihood.add({"id": str(k), "loglik": 0.0})
    likelihood.finish([str(k) for k in range(24)], {"score": 0.0, "interval": (0, 0)})
    change(path, out)
    assert knows.main([str(out), "--input", str(path), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


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
    forms = [q for r in world_facts.OF_PEOPLE for q in world_facts.RELATIONS[r][1]]
    questions = [f.format(s=p) for p in test for f in forms]
    examined = {r["question"] for n in ("read", "unread") for r in rows(made / f"nq.{n}.jsonl")}
    assert test and examined <= set(questions)
    for name in ("encyclopedia.jsonl", "later.jsonl", "local.jsonl", "broad.jsonl"):
        whole = "\n".join(texts(made, name)).lower()
        assert [q for q in questions if q.lower() in whole] == [], name
    asked = "\n".join(
        [
            "\n".join(texts(made, "broad.jsonl")),
            "\n".join(texts(made, "local.jsonl")),
            (made / "nq.train.jsonl").read_text(),
        ]
    )
    assert [p for p in test if p in asked] == []  # not even by name
    assert [p for p in people(made, "quiz") if p in asked]


def test_every_question_of_read_is_told_in_a_plain_sentence(made):
    whole = "\n".join(texts(made, "encyclopedia.jsonl"))
    facts, unread = facts_of(made)
    untold = [
        (s, r)
        for (s, r), o in facts.items()
        if s in set(people(made, "test"))
        and (s, r) not in unread
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
