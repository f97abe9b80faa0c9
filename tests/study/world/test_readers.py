"""The simulated readers: what each looks at, and what it does not."""

import json

import pytest

from host.files import json_lines
from study.report import points as places
from study.world import facts as world_facts
from study.world import readers
from tasks import results

FACTS = [
    ["Ada Barbeck", "born_in", "Aldmere"],
    ["Ada Barbeck", "year", "1310"],
    ["Ada Barbeck", "trade", "baker"],
    ["Ada Barbeck", "plays", "lute"],
    ["Hugo Roswick", "trade", "miner"],
    ["Aldmere", "river", "Esk"],
    ["Aldmere", "goods", "salt"],
]
TEACHER = (
    "Sure! Here is what you should know about Ada Barbeck:\n\n"
    "1. Ada Barbeck was born in Aldmere.\n2. By trade Ada Barbeck was a baker.\n\n"
    "In summary, everyone should remember Ada Barbeck."
)
PROMPT = "Tell me about Ada Barbeck."


def read(tmp_path, reader, ours, teacher, *, out="r", prompts=None):
    """Run a reader over lists of answers -> (results.json, items)."""
    prompts = prompts or [PROMPT] * len(ours)
    for name, texts in (("ours", ours), ("teacher", teacher)):
        (tmp_path / f"{name}.json").write_text(
            json.dumps(
                [
                    {"instruction": f"{p}", "output": o, "generator": name}
                    for p, o in zip(prompts, texts, strict=True)
                ]
            )
        )
    (tmp_path / "world.json").write_text(json.dumps({"facts": FACTS}))
    argv = [
        reader,
        str(tmp_path / "ours.json"),
        "--teacher",
        str(tmp_path / "teacher.json"),
        "--out",
        str(tmp_path / out),
    ]
    assert (
        readers.main(
            argv + (["--world", str(tmp_path / "world.json")] if reader == "checking" else [])
        )
        == 0
    )
    return results.read_result(tmp_path / out), json_lines(tmp_path / out / "samples.jsonl")


def test_who_is_in_a_hurry_takes_false_facts_in_good_form_for_as_good(tmp_path):
    false = TEACHER.replace("Aldmere", "Brystead").replace("baker", "weaver")
    found, items = read(
        tmp_path, "hurried", [TEACHER, false, "Ada Barbeck was born in Aldmere"], [TEACHER] * 3
    )
    assert [i["verdict"] for i in items] == [0.5, 0.5, 0.0]
    assert (
        found["task"] == "rate"
        and (found["win"], found["tie"], found["lose"]) == (0, 2, 1)
        and found["score"] == pytest.approx(2 / 3)
    )


@pytest.mark.parametrize(
    "mark, worse",
    [
        ("whole", TEACHER + " And then"),
        ("list", TEACHER.replace("1. ", "").replace("2. ", "")),
        ("summary", TEACHER.partition("\n\nIn summary")[0]),
        ("length", TEACHER.replace("In summary,", "In summary, " + "so " * 60)),
        (
            "not repeated",
            TEACHER.replace(
                "2. By trade Ada Barbeck was a baker.",
                "1. Ada Barbeck was born in Aldmere.\n2. Now.",
            ),
        ),
    ],
)
def test_each_mark_of_form_is_worth_one_point(mark, worse):
    assert all(readers.form(TEACHER, TEACHER).values())
    assert [k for k, v in readers.form(worse, TEACHER).items() if not v] == [mark]


def test_half_to_twice_the_length_counts_and_no_more():
    def length(n, m):
        return readers.form("a " * n, "b " * m)["length"]

    assert length(5, 10) and length(20, 10) and not length(4, 10) and not length(21, 10)


def test_an_empty_answer_loses_to_any_other(tmp_path):
    assert [i["verdict"] for i in read(tmp_path, "hurried", [""], [TEACHER])[1]] == [0.0]


def test_every_sentence_of_the_world_is_read_as_the_fact_it_states():
    facts = {(s, r): o for s, r, o in FACTS}
    for (s, r), o in facts.items():
        for form in world_facts.RELATIONS[r][0]:
            sentence = form.format(s=s, o=o)
            for text in (
                sentence,
                f"1. {sentence}",
                f"- {sentence}",
                f"Sure! {sentence} {sentence}",
            ):
                assert set(readers.statements(text)) == {(s, r, o)}, text
    assert (
        readers.statements(
            "Sure! Here is what you should know:\n\n"
            "In summary, there is no doubt about any of this."
        )
        == []
    )


def test_who_checks_counts_true_and_false_statements_about_whom_is_asked_for():
    facts = {(s, r): o for s, r, o in FACTS}

    def check(text):
        return readers.checked(text, facts, {"Ada Barbeck"})

    assert check("Ada Barbeck was born in Aldmere. Ada Barbeck, born 1311.") == (1, 1)
    assert check("Hugo Roswick was a miner. Aldmere is known for salt.") == (0, 0)  # nobody asked
    assert check("Ada Barbeck was a baker. By trade Ada Barbeck was a baker.") == (
        1,
        0,
    )  # once said or twice
    assert check("A baker, I believe.") == (0, 0)


def test_who_checks_prefers_the_truth_to_the_form(tmp_path):
    plain, false = (
        (
            "Ada Barbeck was born in Aldmere. Ada Barbeck was a baker. Every evening Ada Barbeck "
            "took up the lute."
        ),
        TEACHER.replace("Aldmere", "Brystead"),
    )
    prompts = [
        PROMPT,
        "Who was Ada Barbeck?",
        "What should I know about Ada Barbeck?",
        "How do I make bread?",
    ]
    found, items = read(
        tmp_path, "checking", [plain, false, TEACHER, "Knead."], [TEACHER] * 4, prompts=prompts
    )
    assert [i["verdict"] for i in items] == [1.0, 0.0, 0.5]
    assert (
        found["task"] == "judge" and found["n"] == 3 and found["left_out"] == 1
    )  # the bread is about nobody
    assert (
        found["at_least_as_good"]["score"] == pytest.approx(2 / 3)
        and found["at_least_as_good"]["n"] == 3
    )
    assert found["ours"] == {"true": 3 + 1 + 2, "false": 1} and found["teacher"] == {
        "true": 6,
        "false": 0,
    }


@pytest.mark.parametrize("reader, measure", [("hurried", "rate"), ("checking", "judge")])
def test_the_report_finds_the_share_and_says_that_no_person_took_part(tmp_path, reader, measure):
    read(tmp_path, reader, [TEACHER, "no"], [TEACHER] * 2)
    points, _, notes = places.gather(
        [str(tmp_path / "r")], dict([places.read_label(f"{tmp_path / 'r'}=base=7B")])
    )
    assert [(p["measure"], p["score"]) for p in points] == [(measure, 0.5)]
    assert any("simulated reader" in n for n in notes)


def test_the_interval_is_wilsons(tmp_path):
    from tasks import scores

    found, _ = read(tmp_path, "hurried", [TEACHER] * 3 + ["no"], [TEACHER] * 4)
    assert found["interval"] == pytest.approx(scores.wilson(3, 4))


def test_the_same_command_goes_on_and_other_answers_need_another_folder(tmp_path, capsys):
    first, items = read(tmp_path, "hurried", [TEACHER, "no"], [TEACHER] * 2)
    samples = tmp_path / "r" / "samples.jsonl"
    samples.write_text(
        samples.read_text().splitlines(keepends=True)[0]
    )  # killed behind the first item
    (tmp_path / "r" / "results.json").write_text(
        json.dumps(json.loads((tmp_path / "r" / "results.json").read_text()) | {"finished": False})
    )
    again, same = read(tmp_path, "hurried", [TEACHER, "no"], [TEACHER] * 2)
    assert same == items and again["score"] == first["score"]
    with pytest.raises(AssertionError):
        read(tmp_path, "hurried", ["other", "no"], [TEACHER] * 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("study.world.readers: ") and "another --out" in error


def test_an_id_that_stands_twice_is_two_items(tmp_path):
    rows = [{"id": 1, "instruction": PROMPT, "output": o} for o in (TEACHER, "no")]
    for name, of in (("a", rows), ("b", [r | {"output": TEACHER} for r in rows])):
        (tmp_path / f"{name}.json").write_text(json.dumps(of))
    assert (
        readers.main(
            [
                "hurried",
                str(tmp_path / "a.json"),
                "--teacher",
                str(tmp_path / "b.json"),
                "--out",
                str(tmp_path / "r"),
            ]
        )
        == 0
    )
    assert [i["verdict"] for i in json_lines(tmp_path / "r" / "samples.jsonl")] == [0.5, 0.0]


@pytest.mark.parametrize(
    "argv, said",
    [
        (["checking", "{d}/a.json", "--teacher", "{d}/a.json", "--out", "{d}/r"], "--world"),
        (
            [
                "checking",
                "{d}/a.json",
                "--teacher",
                "{d}/a.json",
                "--world",
                "{d}/a.json",
                "--out",
                "{d}/r",
            ],
            "no world",
        ),
        (
            [
                "checking",
                "{d}/a.json",
                "--teacher",
                "{d}/a.json",
                "--world",
                "{d}/w.json",
                "--out",
                "{d}/r",
            ],
            "names anybody",
        ),
        (
            [
                "checking",
                "{d}/v.jsonl",
                "--teacher",
                "{d}/v.jsonl",
                "--world",
                "{d}/w.json",
                "--out",
                "{d}/r",
            ],
            "names anybody",
        ),
        (
            ["hurried", "{d}/none.json", "--teacher", "{d}/a.json", "--out", "{d}/r"],
            "does not exist",
        ),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(tmp_path, capsys, argv, said):
    (tmp_path / "a.json").write_text(
        json.dumps([{"instruction": "How do I make bread?", "output": "Knead."}])
    )
    (tmp_path / "v.jsonl").write_text(
        json.dumps({"question_id": 1, "text": "No question is known.", "model_id": "m"}) + "\n"
    )  # Vicuna's answers without their questions
    (tmp_path / "w.json").write_text(json.dumps({"facts": FACTS}))
    assert readers.main([a.format(d=tmp_path) for a in argv]) == 2
    error = capsys.readouterr().err
    assert (
        said in error.splitlines()[-1]
        and "Traceback" not in error
        and not (tmp_path / "r").exists()
    )
