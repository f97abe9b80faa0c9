"""study.curate diversity and leakage from files to report: the numbers of sacrebleu, every form of
file, hostile text shown as text.
"""

import gzip
import json
import random
import re

import pytest
import sacrebleu

from study.curate import __main__ as curate
from study.curate import bleu, diversity, language, leakage

EVIL = "</script><script>alert(1)</script> \x1b[31mred & <b>bold</b>"


def dialogue(*said, name="d"):
    return {
        "id": name,
        "conversations": [
            {"from": "human" if k % 2 == 0 else "gpt", "value": v} for k, v in enumerate(said)
        ],
    }


def write(path, items):
    text = "".join(json.dumps(i) + "\n" for i in items)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def run(*args):
    return curate.main([str(a) for a in args])


def samples(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def maximum(i, queries):
    return max(
        sacrebleu.sentence_bleu(queries[i], [q]).score for j, q in enumerate(queries) if j != i
    )


def test_diversity_is_sacrebleus_maximum_over_the_other_first_queries(tmp_path, capsys):
    queries = [
        "What is the capital of France?",
        "What is the capital of Spain?",
        "Tell me a joke.",
        EVIL,
        "Tell me a joke.",
        "hm",
        "Tell me a story about the capital of France, please.",
    ]
    path = write(
        tmp_path / "d.jsonl.gz",
        [dialogue(q, "answer", "What is the capital of France?") for q in queries],
    )
    assert run("diversity", path, "--out", tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    assert [i["query"] for i in found] == queries
    assert [i["bleu"] for i in found] == pytest.approx(
        [maximum(i, queries) for i in range(len(queries))], rel=1e-9
    )
    assert found[0]["nearest"] == queries[1] and found[2]["nearest"] == queries[4]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (
        report["score"] == pytest.approx(sum(i["bleu"] for i in found) / 7)
        and sum(report["histogram"].values()) == 7
    )
    assert report["queries that are copies of another"] == 2 and report["different queries"] == 6
    once = list(dict.fromkeys(queries))
    assert report["mean where copies count once"] == pytest.approx(
        sum(maximum(i, once) for i in range(6)) / 6
    )
    printed = capsys.readouterr().out
    assert (
        "\x1b" not in printed
        and f"mean {report['score']:.2f} %" in printed
        and "capital of Spain" in printed
    )
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>alert" not in page and "\\u003cscript" in page and page.count("</script>") == 2


def test_all_turns_and_a_drawn_sample(tmp_path):
    path = write(
        tmp_path / "d.jsonl", [dialogue(f"first {k}", "answer", f"second {k}") for k in range(20)]
    )
    run("diversity", path, "--out", tmp_path / "all", "--all-turns")
    assert len(samples(tmp_path / "all")) == 40
    for out in ("a", "b"):
        run("diversity", path, "--out", tmp_path / out, "--sample", 7)
    assert len(samples(tmp_path / "a")) == 7 and samples(tmp_path / "a") == samples(tmp_path / "b")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_task_of_super_natural_instructions(tmp_path, indent):
    task = {
        "Contributors": ["x"],
        "Definition": ["Say whether it is true."],
        "Positive Examples": [],
        "Instances": [
            {"id": f"t-{k}", "input": text, "output": ["yes"]}
            for k, text in enumerate(("Snow is white.", "Grass is red."))
        ],
    }
    (tmp_path / "task001.json").write_text(json.dumps(task, indent=indent))
    assert run("diversity", tmp_path / "task001.json", "--out", tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    assert [(i["id"], i["query"]) for i in found] == [
        ("t-0", "Say whether it is true.\n\nSnow is white."),
        ("t-1", "Say whether it is true.\n\nGrass is red."),
    ]


PROMPTS = {
    "koala": ({"id": "koala_0", "prompt": "%s"}, "koala_0"),
    "self-instruct": (
        {
            "id": "u_0",
            "motivation_app": "x",
            "instruction": "%s",
            "instances": [{"input": "", "output": "y"}],
        },
        "u_0",
    ),
    "alpaca_eval": (
        {"dataset": "koala", "instruction": "%s", "output": "y", "generator": "g"},
        None,
    ),
    "vicuna": ({"question_id": 7, "text": "%s", "category": "generic"}, "7"),
}


@pytest.mark.parametrize("form", PROMPTS)
@pytest.mark.parametrize("listed", [False, True])
def test_leakage_keeps_the_rows_as_they_were_read(tmp_path, form, listed):
    texts = [
        "What is the best way to learn how to cook at home?",
        "Why do cats purr when they are held by somebody?",
        EVIL,
    ]
    prompts = [
        json.loads(json.dumps(PROMPTS[form][0]).replace('"%s"', json.dumps(t))) for t in texts
    ]
    train = write(
        tmp_path / "t.jsonl",
        [
            dialogue("Hello", "Hi", "Tell me the best way to learn how to cook at home?"),
            dialogue("Bye", "Bye"),
        ],
    )
    if listed:
        (tmp_path / "p.json").write_text(json.dumps(prompts))
    else:
        write(tmp_path / "p.json", prompts)
    assert run("leakage", tmp_path / "p.json", "--train", train, "--out", tmp_path / "out") == 0
    assert [
        json.loads(line) for line in (tmp_path / "out" / "kept.jsonl").read_text().splitlines()
    ] == prompts[1:]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    first = report["prompts"][0]
    assert (
        first["nearest"] == "Tell me the best way to learn how to cook at home?"
        and first["dropped"] == "BLEU above 20 %"
        and report["dropped"] == 1
    )
    assert first["bleu"] == pytest.approx(
        sacrebleu.sentence_bleu(texts[0], [first["nearest"]]).score
    )
    assert PROMPTS[form][1] is None or first["id"] == PROMPTS[form][1]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Tell me the best way to learn" in page and "<script>alert" not in page


def test_the_threshold_is_exceeded_not_reached(tmp_path):
    train = write(
        tmp_path / "t.jsonl",
        [
            dialogue("Why do birds sing in the morning before anybody is up?", "x"),
            dialogue("y", "x"),
        ],
    )
    prompts = write(
        tmp_path / "p.jsonl", [{"id": "a", "prompt": "Why do birds sing in the evening?"}]
    )
    run("leakage", prompts, "--train", train, "--out", tmp_path / "o")
    score = json.loads((tmp_path / "o" / "report.json").read_text())["prompts"][0]["bleu"]
    for threshold, kept in ((score, 1), (score - 1e-9, 0)):
        run(
            "leakage",
            prompts,
            "--train",
            train,
            "--threshold",
            repr(threshold),
            "--out",
            tmp_path / "o",
        )
        assert len((tmp_path / "o" / "kept.jsonl").read_text().splitlines()) == kept


def test_other_languages_and_code_are_dropped_unless_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "is_english", lambda d: "è" not in d["conversations"][0]["value"])
    train = write(tmp_path / "t.jsonl", [dialogue("one two three", "x")])
    prompts = write(
        tmp_path / "p.jsonl",
        [
            {"id": "fr", "prompt": "Quelle est la première règle ?"},
            {"id": "code", "prompt": "Write a Python function that sorts."},
            {"id": "en", "prompt": "Why do cats purr?"},
        ],
    )

    def kept(*more):
        return run("leakage", prompts, "--train", train, "--out", tmp_path / "o", *more) or [
            json.loads(x)["id"] for x in (tmp_path / "o" / "kept.jsonl").read_text().splitlines()
        ]

    assert (
        kept() == ["en"]
        and kept("--keep-code") == ["code", "en"]
        and kept("--keep-languages") == ["fr", "en"]
    )


@pytest.mark.parametrize(
    "text",
    [
        "Fix this:\n```\nx\n```",
        "explain c++ templates",
        "How do I debug my program?",
        "import os\nimport sys\nprint(1)",
        "Write a program to compute the sum",
        "write a sql query",
        "What does this code do?",
        "int x;\ny = 3;\n",
    ],
)
def test_this_is_about_code(text):
    assert leakage.is_code(text)


@pytest.mark.parametrize(
    "text",
    [
        "What should I wear, the dress code is formal?",
        "Write a code of conduct for a club",
        "Plan an exercise program for me",
        "How does the function of the heart change?",
        "My zip code is 94110",
        "Write a poem; make it sad",
        "Shorten this: " + "many words of an article " * 60 + "code",
        "",
    ],
)
def test_this_is_not_about_code(text):
    assert not leakage.is_code(text)


@pytest.mark.parametrize(
    "args, rule",
    [
        (["diversity", "none.jsonl"], "does not exist"),
        (["diversity", "FILE", "--sample", "9"], "--sample 9"),
        (["diversity", "FILE", "--threads", "0"], "--threads 0"),
        (["diversity", "ONE"], "two or more"),
        (["leakage", "FILE", "--train", "ONE"], "no prompt in it"),
    ],
)
def test_what_a_user_can_mend_is_one_line(tmp_path, capsys, args, rule):
    places = {
        "FILE": write(
            tmp_path / "f.jsonl",
            [dialogue("a b", "x"), dialogue("c d", "x")]
            if args[0] == "diversity"
            else [{"text": 5}],
        ),
        "ONE": write(tmp_path / "one.jsonl", [dialogue("a", "b")]),
    }
    assert run(*(places.get(a, a) for a in args), "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert rule in err or rule == "no prompt in it" and "malformed" in err
    assert "Traceback" not in err


def test_real_prompts_against_real_queries(data_dir, tmp_path, capsys):
    prompts, train = (
        data_dir / "eval_prompts" / "koala_test_set.jsonl",
        data_dir / "dialogues" / "sharegpt_en.json.gz",
    )
    assert run("leakage", prompts, "--train", train, "--out", tmp_path) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (
        report["n"] == 180
        and len((tmp_path / "kept.jsonl").read_text().splitlines()) == report["score"] > 120
    )
    for item in report["prompts"][::40]:
        assert item["bleu"] == pytest.approx(
            sacrebleu.sentence_bleu(item["prompt"], [item["nearest"]]).score, rel=1e-9
        )
    assert re.search(r"leakage: \d+ of 180 prompts kept", capsys.readouterr().out)


def test_copies_searched_once_give_what_a_search_of_all_gives():
    rng = random.Random(0)
    for _ in range(20):
        texts = [
            " ".join(rng.choices("abc", k=rng.randrange(1, 5))) + rng.choice(["", " ", "\n"])
            for _ in range(rng.choice([2, 5, 30]))
        ]
        scores, index, once = diversity.with_copies(texts, 1)
        wanted, at = bleu.nearest(texts)
        assert (
            scores.tolist() == pytest.approx(wanted.tolist(), rel=1e-12)
            and index.tolist() == at.tolist()
        )
        assert len(once) == (len(set(texts)) if len(set(texts)) > 1 else 0)
    assert diversity.with_copies(["<skipped>"] * 3, 1)[0].tolist() == [
        0,
        0,
        0,
    ]  # copies without a token
