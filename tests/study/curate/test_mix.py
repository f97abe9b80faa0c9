"""ShareGPT-Mix end to end: what is kept and why not, same bytes twice, the page, the review sheet,
nested amounts.
"""

import csv
import gzip
import json
import pathlib
import re

import pytest

import data
from study import rows
from study.curate import MENTIONS, amounts, mix_report, sheet
from study.curate import __main__ as curate
from text import dialogues, tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[3]

TOK = next(p for p in (ROOT / "samples").rglob("*.model"))

LONG = (
    "This answer explains the matter in plain English words, slowly, with an example that "
    "everybody understands."
)


def row(name, *texts):
    return {
        "id": name,
        "conversations": [
            {"from": "gpt" if k % 2 else "human", "value": t} for k, t in enumerate(texts)
        ],
    }


def lines_of(rows):
    return "".join(json.dumps(r) + "\n" for r in rows)


@pytest.fixture
def files(tmp_path):
    """Three small sources, one dialogue for each fate."""
    share = [
        row("AbCdEf1_2", "And what about coffee?", LONG),
        row("AbCdEf1_0", "What is tea?", LONG),
        row("AbCdEf2_0", "what is TEA", LONG),
        row("AbCdEf3_0", "什么是茶？", "茶是一种饮料，用茶树的叶子泡成。"),
        row("AbCdEf4_0", "Who made you, and when was it?", "I was made by OpenAI. " + LONG),
        row("AbCdEf5_0", "Nobody answers this question", " "),
        row("AbCdEf6_0", "<script>alert(1)</script> what does this do?", LONG),
        {"id": "AbCdEf7_0", "conversations": []},
        row("AbCdEf8_0", "=cmd|' /C calc'!A0 explain this cell to me", "@SUM(1) " + LONG),
    ]
    hc3 = [
        {
            "question": "What is milk?",
            "human_answers": ["by a person"],
            "chatgpt_answers": [LONG, LONG + " Again."],
        },
        {"question": "What is milk?", "human_answers": [], "chatgpt_answers": [LONG]},
    ]
    discord = [
        {"input": "What is juice made of?", "output": LONG},
        {"input": "What is tea?!", "output": LONG},
    ]
    for name, source in (("share.jsonl", share), ("hc3.jsonl", hc3), ("discord.jsonl", discord)):
        (tmp_path / name).write_text(lines_of(source), encoding="utf-8")
    return tmp_path


def command(*args):
    curate.run(curate.parser().parse_args(list(map(str, args))))


def make(folder, out, *more):
    command(
        "mix",
        "--sharegpt",
        folder / "share.jsonl",
        "--hc3",
        folder / "hc3.jsonl",
        "--discord",
        folder / "discord.jsonl",
        "--out",
        out,
        *more,
    )
    return json.loads((out / "report.json").read_text()), list(sheet.read_mix(out))


def test_each_dialogue_is_kept_or_dropped_for_its_reason(files):
    report, kept = make(files, files / "out")
    assert [(d["id"], d["source"]) for d in kept if d["source"] != "hc3"] == [
        ("AbCdEf1_0", "sharegpt"),
        ("AbCdEf4_0", "sharegpt"),
        ("AbCdEf6_0", "sharegpt"),
        ("AbCdEf8_0", "sharegpt"),
        ("discord.jsonl line 1", "discord"),
    ]
    assert [t["value"] for t in kept[0]["conversations"]][::2] == [
        "What is tea?",
        "And what about coffee?",
    ]
    assert [d["source"] for d in kept].count("hc3") == 2 and "by a person" not in json.dumps(kept)
    share = report["sources"]["sharegpt"]
    assert {why: d["count"] for why, d in share["dropped"].items()} == {
        "no answer after a question": 2,
        "same user query as an earlier dialogue": 1,
        "not English": 1,
    }
    assert share["dropped"]["same user query as an earlier dialogue"]["examples"] == [
        {"id": "AbCdEf2_0", "query": "what is TEA", "detail": "as AbCdEf1_0"}
    ]
    assert report["sources"]["hc3"]["dropped"]["exact copy of an earlier row"]["count"] == 1
    assert (
        report["sources"]["discord"]["dropped"]["same user query as an earlier dialogue"]["count"]
        == 1
    )


def test_what_is_read_is_kept_or_dropped_and_nothing_else(files):
    report, kept = make(files, files / "out")
    for s in report["sources"].values():
        assert s["read"]["dialogues"] == s["pieces_that_became_part_of_another"] + s["kept"][
            "dialogues"
        ] + sum(d["count"] for d in s["dropped"].values())
        for histogram in ("turns", "characters", "categories"):
            assert sum(s[histogram].values()) == s["kept"]["dialogues"]
    assert report["total"]["dialogues"] == len(kept)


def test_flags_choose_what_is_dropped(files):
    def ids(*more):
        return {d["id"] for d in make(files, files / "out", *more)[1]}

    base = ids()
    assert base - ids("--drop-mentions") == {"AbCdEf4_0"}
    assert ids("--keep-languages") - base == {"AbCdEf3_0"}
    assert ids("--dedup", "all") - base == {"AbCdEf2_0"}
    assert ids("--dedup", "none") - base == {
        "AbCdEf2_0",
        "discord.jsonl line 2",
        "hc3.jsonl line 2",
    }


def test_koalas_words_are_found_in_any_case_and_any_turn(files):
    for word in MENTIONS:
        (files / "share.jsonl").write_text(
            lines_of([row("AbCdEf1_0", "Tell me of " + word.upper(), LONG)])
        )
        assert not [
            d for d in make(files, files / "out", "--drop-mentions")[1] if d["source"] == "sharegpt"
        ], word


def test_two_runs_and_two_workers_give_the_same_bytes(files):
    out = [
        make(files, files / n, "--tokenizer", TOK, *w)
        and {p.name: p.read_bytes() for p in sorted((files / n).iterdir())}
        for n, w in (("a", []), ("b", []), ("c", ["--workers", "2"]))
    ]
    assert out[0] == out[1] == out[2] and set(out[0]) == {
        "mix.jsonl.gz",
        "report.json",
        "report.html",
    }
    head = out[0]["mix.jsonl.gz"][:10]
    assert head[4:8] == bytes(4) and head[3] == 0, "gzip's time is 0 and its name is not there"


def test_a_duplicate_of_a_dropped_dialogue_is_kept(files):
    (files / "share.jsonl").write_text(
        lines_of(
            [
                row("AbCdEf1_0", "Who are you?", "I am ChatGPT."),
                row("AbCdEf2_0", "Who are you?", LONG),
            ]
        )
    )
    assert "AbCdEf2_0" in {d["id"] for d in make(files, files / "out", "--drop-mentions")[1]}


def test_ten_examples_of_a_reason_and_no_more(files):
    (files / "share.jsonl").write_text(
        lines_of([row(f"AbCd{k:03}_0", f"question {k}", "") for k in range(12)])
    )
    dropped = make(files, files / "out")[0]["sources"]["sharegpt"]["dropped"][
        "no answer after a question"
    ]
    assert dropped["count"] == 12 and [x["id"] for x in dropped["examples"]] == [
        f"AbCd{k:03}_0" for k in range(10)
    ]


def test_the_page_escapes_what_data_sets_say(files):
    (files / "share.jsonl").write_text(
        lines_of([row("<b>_0", "<script>alert(1)</script>\x1b[31m", " ")])
    )
    make(files, files / "out")
    text = (files / "out" / "report.html").read_text()
    assert (
        "<script" not in text
        and "&lt;script&gt;alert(1)" in text
        and "\x1b" not in text
        and "&lt;b&gt;_0" in text
    )
    assert not re.search(r"(?:src|href)=", text)


def test_tokens_are_those_that_training_sees(files):
    report, kept = make(files, files / "out", "--tokenizer", TOK)
    tok = tokenizer.load(TOK)
    ids = [data.tokenize_dialogue(d, tok) for d in kept]
    [name] = report["settings"]["tokenizers"]
    assert report["total"]["tokens"][name] == {
        "tokens": sum(len(t) for t, _ in ids),
        "loss_tokens": sum(int(m.sum()) for _, m in ids),
    }


def test_data_py_packs_the_mix(files, capsys):
    _, kept = make(files, files / "out")
    assert (
        data.main(
            [
                "pack",
                str(files / "out" / "mix.jsonl.gz"),
                "--tokenizer",
                str(TOK),
                "--out",
                str(files / "packed"),
                "--block",
                "64",
            ]
        )
        == 0
    )
    assert json.loads((files / "packed" / "pack.json").read_text())["counts"]["dialogues"] == len(
        kept
    )


def test_half_a_surrogate_pair_survives(files):
    (files / "share.jsonl").write_text(
        lines_of(
            [row("AbCdEf1_0", "What is this sign \ud83d of?", LONG), row("AbCdEf2_0", "\ud83d", "")]
        )
    )
    report, kept = make(files, files / "out", "--tokenizer", TOK, "--sample", "9")
    assert (
        report["sources"]["sharegpt"]["dropped"]["no answer after a question"]["examples"][0][
            "query"
        ]
        == "?"
    )
    amounts.subsets(files / "out", TOK, ["50"], 0, files / "amounts")
    assert kept[0]["conversations"][0]["value"] == "What is this sign \ud83d of?"


@pytest.mark.parametrize(
    "args, says",
    [
        (["mix"], "--out"),
        (["mix", "--out", "{out}"], "--sharegpt"),
        (["mix", "--sharegpt", "{no}", "--out", "{out}"], "does not exist"),
        (
            ["mix", "--sharegpt", "{share}", "--out", "{out}", "--tokenizer", "{share}"],
            "share.jsonl",
        ),
        (["mix", "--table", "{no}"], "cannot be read"),
        (["mix", "--sharegpt", "{share}", "--out", "{out}", "--workers", "0"], "--workers 0"),
        (["mix", "--out", "{out}", "--sample", "5"], "no mix.jsonl.gz"),
        (["mix", "--sharegpt", "{damaged}", "--out", "{out}"], "damaged"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_leaves_nothing(files, args, says):
    (files / "damaged.gz").write_bytes(
        gzip.compress(lines_of([row("a_0", "q", LONG)] * 500).encode())[:60]
    )
    names = {
        "out": files / "out",
        "no": files / "no",
        "share": files / "share.jsonl",
        "damaged": files / "damaged.gz",
    }
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        command(*(a.format(**names) for a in args))
    assert "\n" not in str(error.value)
    assert not (files / "out").exists() or not list((files / "out").iterdir())


def test_an_interrupted_mix_leaves_the_old_one_and_nothing_half_written(files, monkeypatch):
    make(files, files / "out")
    old = {p.name: p.read_bytes() for p in (files / "out").iterdir()}

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mix_report, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        make(files, files / "out", "--drop-mentions")
    assert {p.name: p.read_bytes() for p in (files / "out").iterdir()} == old


def test_the_command_line_gives_one_line_and_status_2(tmp_path, capsys):
    args = ["mix", "--sharegpt", str(tmp_path / "no"), "--out", str(tmp_path / "out")]
    assert curate.main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith("study.curate: ") and err.count("\n") == 1


def test_two_mixes_do_not_write_one_folder(files):
    make(files, files / "out")
    old = (files / "out" / "mix.jsonl.gz").read_bytes()
    with rows.locked(files / "out"):
        with pytest.raises(ValueError, match="another run"):
            make(files, files / "out", "--drop-mentions")
        with pytest.raises(ValueError, match="another run"):
            amounts.subsets(files / "out", TOK, ["50"], 0, files / "out")
    assert (files / "out" / "mix.jsonl.gz").read_bytes() == old
    make(files, files / "out", "--drop-mentions")
    assert (files / "out" / "mix.jsonl.gz").read_bytes() != old, "the lock is gone with its holder"


def test_200_numbered_dialogues_stay_200(files):
    rows = [row(f"medical_{k}", f"What does symptom {k} mean?", f"{LONG} {k}") for k in range(200)]
    (files / "share.jsonl").write_text(lines_of(rows))
    report, kept = make(files, files / "out")
    share = report["sources"]["sharegpt"]
    assert share["kept"]["dialogues"] == 200 and share["kept"]["turns"] == 400
    assert share["pieces_that_became_part_of_another"] == 0
    assert {d["id"] for d in kept} >= {r["id"] for r in rows}


# --- the manual review ---


def sheet_of(path):
    with open(path, encoding="utf-8-sig", newline="") as f:
        return list(csv.DictReader(f))


def test_the_sheet_is_drawn_by_the_seed_and_its_cells_compute_nothing(files):
    make(files, files / "out", "--sample", "50")
    rows = sheet_of(files / "out" / "sheet.csv")
    assert (
        len(rows) == 7
        and list(rows[0]) == list(sheet.COLUMNS)
        and {r["category"] + r["quality"] for r in rows} == {""}
    )
    [formula] = [r for r in rows if r["id"] == "AbCdEf8_0"]
    assert formula["query"].startswith("'=cmd|") and formula["answer"].startswith("'@SUM")
    first = (files / "out" / "sheet.csv").read_bytes()
    command("mix", "--out", files / "out", "--sample", "50")
    assert (files / "out" / "sheet.csv").read_bytes() == first
    command("mix", "--out", files / "out", "--sample", "2", "--seed", "1")
    assert len(sheet_of(files / "out" / "sheet.csv")) == 2


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " =1", "\t=1", "＝1"])
def test_cells_that_a_spreadsheet_would_compute_are_defused(text):
    assert sheet.cell(text) == "'" + text
    assert sheet.cell("a" + text) == "a" + text


def test_a_filled_sheet_becomes_the_table_and_is_not_written_over(files, capsys):
    make(files, files / "out", "--sample", "5")
    path = files / "out" / "sheet.csv"
    rows = sheet_of(path)
    for r, (category, quality) in zip(
        rows,
        [("Knowledge", "5"), ("knowledge ", "4"), ("Coding", "2,5"), ("Coding", ""), ("", "")],
        strict=False,
    ):
        r |= {"category": category, "quality": quality}
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, sheet.COLUMNS, delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    capsys.readouterr()
    command("mix", "--table", path)
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[1:] == [
        ["Coding", "2", "50.0%", "2.50"],
        ["Knowledge", "2", "50.0%", "4.50"],
        ["all", "4", "100%", "3.83"],
        "1 rows without a category are left out".split(),
    ]
    with pytest.raises(ValueError, match="filled in already"):
        command("mix", "--out", files / "out", "--sample", "5")
    with pytest.raises(ValueError, match="filled in already"):
        make(files, files / "out", "--sample", "5")


@pytest.mark.parametrize(
    "text, says",
    [
        ("a,b\n1,2\n", "no column number"),
        ("number,category,quality\n1,x,9\n", "row 1: quality '9'"),
        ("number,category,quality\n1,x,nan\n", "quality"),
        ("number,category,quality\n1,,\n", "no category filled in"),
        ("", "no column"),
    ],
)
def test_a_sheet_that_is_none_is_one_line(tmp_path, text, says):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        sheet.table(tmp_path / "s.csv")


@pytest.mark.parametrize(
    "query, name",
    [
        ("Fix this Python function", "code"),
        ("Summarize this text", "rewrite or summarise"),
        ("Act as a lawyer", "role play"),
        ("Solve x^2 = 4", "mathematics"),
        ("A poem on rain", "creative writing"),
        ("Draft an email to Ann", "writing"),
        ("Brainstorm for a party", "ideas and plans"),
        ("Why is the sky blue", "question"),
        ("hello", "other"),
    ],
)
def test_the_categories_follow_their_rule(query, name):
    assert mix_report.category(query) == name


# --- real data ---


def test_a_mix_of_the_real_files(data_dir, tmp_path):
    d = data_dir / "dialogues"
    command(
        "mix",
        "--sharegpt",
        d / "sharegpt_en.json.gz",
        d / "sharegpt_zh.jsonl.gz",
        "--hc3",
        data_dir / "hc3" / "wiki_csai.jsonl.gz",
        "--out",
        tmp_path,
    )
    report, kept = (
        json.loads((tmp_path / "report.json").read_text()),
        list(sheet.read_mix(tmp_path)),
    )
    share = report["sources"]["sharegpt"]
    assert (
        share["pieces_that_became_part_of_another"] == 10
        and share["dropped"]["not English"]["count"] >= 594
    )
    english = {x["id"].split("_")[0] for x in dialogues.read_dialogues(d / "sharegpt_en.json.gz")}
    assert len({x["id"].split("_")[0] for x in kept} & english) >= 630
    assert all(
        a["from"] != b["from"]
        for x in kept
        for a, b in zip(x["conversations"], x["conversations"][1:], strict=False)
    )
