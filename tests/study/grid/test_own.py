"""The preset own: its steps, its refusals, the money it counts, and one run of it whole."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from local_endpoint import LocalEndpoint, answer

from study import answers, style
from study.grid import __main__ as grid
from study.grid import own, prompts, questions, running, steps, teacher
from study.grid.steps import Step
from study.judge import __main__ as judge
from study.rate import __main__ as rate
from study.toxicity import __main__ as toxicity
from tasks import flags as flags_of_eval
from tasks import mmlu, nq
from training import flags as train_flags

TOPICS = [f"{a} {b}" for a in ("red", "cold", "loud", "deep") for b in ("lake", "coat", "drum")]
# no two of them near one another by BLEU
PROMPTS = [" ".join(f"{t.replace(' ', w)}{w}" for w in "abcdef") for t in TOPICS]
FACTS = [
    ("Who wrote Hamlet?", "Shakespeare"),
    ("What barks?", ["a dog", "dog"]),
    ("What purrs?", "a cat"),
    ("What is cold?", "ice"),
]
CHOICES = [{"question": f"Pick {n}.", "choices": list("wxyz"), "answer": n} for n in range(4)]
ELSEWHERE = "https://api.example.com/v1"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def lines(path, values):
    """A file of JSON lines -> its path as text."""
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    return str(path)


def arguments(folder, *more, who=("--teacher", ELSEWHERE, "--teacher-model", "t")):
    """A command line of the preset whose files are there."""
    asked = lines(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    facts = [{"question": q, "answer": a} for q, a in FACTS]
    known = lines(folder / "questions.jsonl", [*facts, *CHOICES])
    (folder / "base1M").mkdir(exist_ok=True)
    return [
        *("--preset", "own", "--base", str(folder / "base1M"), *who, "--prompts", asked),
        *("--questions", known, "--question-shots", "1", "--amounts", "3", "6"),
        *("--held-out", "4", "--max-tokens", "20", "--out", str(folder / "out"), *more),
    ]


def steps_of(folder, *more, **how):
    argv = arguments(folder, "--no-run", *more, **how)
    return own.steps(grid.parser("own").parse_args(argv))


@pytest.mark.parametrize("local", [True, False])
def test_every_command_is_one_that_the_programs_take_and_needs_what_a_step_before_it_makes(
    local, tmp_path
):
    given = [tmp_path / n for n in ("mmlu", "rtp", "scored", "teacher.gguf")]
    for path in given:
        path.write_text("")
    dev = lines(tmp_path / "dev", [{"question": "x", "answer": ["y"]}] * 4)
    local_file = lines(tmp_path / "local.jsonl", [{"question": "x", "answer": "y"}])
    names = "task_id", "prompt", "entry_point", "canonical_solution", "test"
    problems = lines(tmp_path / "he", [dict.fromkeys(names, "f")])
    more = ["--nq-dev", dev, "--nq-train", dev, "--humaneval", problems]
    more += ["--toxicity-prompts", str(given[1]), "--toxicity-train", str(given[2])]
    more += ["--judge", "http://localhost:1/v1", "--judge-model", "j", "--local", local_file]
    who = {"who": ("--teacher", str(given[3]))} if local else {}
    found, _ = steps_of(tmp_path, *more, **who)
    running.check(found)
    programs = {
        "train.py": train_flags.parser().parse_args,
        "eval.py": flags_of_eval.parser().parse_args,
        "study.answers": lambda a: answers.asking_parser().parse_args(a[1:]),
        "study.grid.prompts": prompts.parser().parse_args,
        "study.grid.questions": questions.parser().parse_args,
        "study.judge": judge.judge_parser().parse_args,
        "study.rate": lambda a: rate.results_parser().parse_args(a[1:]),
        "study.style": style.parser().parse_args,
        "study.toxicity": toxicity.parser().parse_args,
    }
    made = {str(path) for path in (*given, dev, problems, *tmp_path.glob("*.jsonl"))}
    for step in found:
        lacking = [p for p in step.needs if p not in made and "votes" not in p]
        assert not lacking, f"{step.name} needs what no step before it makes: {lacking}"
        made.add(step.out)
        at = 1 if step.argv[0] == "-m" else 0
        args = programs[step.argv[at]](list(step.argv[at + 1 :]))
        assert step.out.startswith(str(getattr(args, "write_prompts", None) or args.out))
    of_teacher = [s for s in found if s.labels and s.labels["role"] == "teacher"]
    of_base = [s for s in found if s.labels and s.labels["role"] == "base"]
    benchmarks = {"questions", "choices", "nq", "humaneval"}
    assert {s.name.removesuffix("-teacher") for s in of_teacher} == benchmarks
    assert benchmarks < {s.name.rpartition("-")[0] for s in of_base}
    assert sum(s.name.startswith("train-") for s in found) == 3
    by_hand = [s.name for s in found if s.by_hand]
    assert all(n.startswith(("rate-", "humaneval-")) for n in by_hand)
    assert any(s.argv[1] == "generate" for s in found if s.name == "ask-train") == local


@pytest.mark.parametrize(
    "more, says",
    [
        (["--base", "nowhere"], "nowhere does not exist"),
        (["--base", "small=samples", "1M=tests"], "write 135M=samples"),
        (["--amounts", "9"], "need more than the 12 prompts"),
        (["--teacher-model", ""], "needs --teacher-model"),
        (["--nq-train", "x"], "nq also needs --nq-dev"),
        (["--question-shots", "3"], "has 4 questions, and the first 3 are examples"),
        ([], "agree with --yes"),
        (["--price", "a"], "PROMPT,COMPLETION"),
    ],
)
def test_what_cannot_be_is_one_line(more, says, tmp_path, capsys):
    assert grid.main(arguments(tmp_path, *more)) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_prompts_it_says_whose_are_evaluations(tmp_path, capsys):
    argv = ["--preset", "own", "--base", str(tmp_path), "--teacher", str(tmp_path)]
    assert grid.main([*argv, "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert "Koala" in said and "Self-Instruct" in said and "Vicuna" in said
    assert "--prompts" in said and said.count("\n") == 1


# --- money ---


def test_requests_and_tokens_are_counted_before_they_are_asked(tmp_path, capsys):
    price = ("--price", "1000000,2000000")  # one and two a token
    assert grid.main(arguments(tmp_path, *price)) == 2
    said = capsys.readouterr().err
    # 6 to train on, twice 4 held out; 4 questions of each kind less an example
    found = re.search(
        r"at most ([\d,]+) requests .*about ([\d,]+) prompt.*most ([\d,]+) comp", said
    )
    requests, prompt, completion = (int(x.replace(",", "")) for x in found.groups())
    assert requests == 6 + 2 * 4 + 3 + 3
    assert completion == (6 + 2 * 4) * 20 + (3 + 3) * teacher.BRIEF["nq"][0]
    mean = sum(map(len, PROMPTS)) / len(PROMPTS) / teacher.CHARACTERS
    assert 14 * mean - 4 < prompt < 14 * mean + 6 * 100
    assert f"{prompt + 2 * completion:,}.00 by --price" in said


def test_what_is_answered_costs_nothing_and_loopback_needs_no_yes(tmp_path, capsys):
    for part in ("train", "heldout", "again", "questions", "choices"):
        folder = tmp_path / "out/teacher" / part
        folder.mkdir(parents=True)
        (folder / "report.json").write_text('{"failed": 1, "of_these_refused": 1}')
    assert steps_of(tmp_path)[1] == []
    (folder / "report.json").write_text('{"failed": 2, "of_these_refused": 1}')
    assert "at most 3 requests" in steps_of(tmp_path)[1][0]
    judge = ("--judge", ELSEWHERE, "--judge-model", "j")
    # three models: a pair in both orders and the tone of both answers, of 4 held-out prompts
    assert "at most 48 requests" in steps_of(tmp_path, *judge)[1][-1]
    for name in ("base1M", "base1M-broad-3", "base1M-broad-6"):
        for result in ("judge", "style"):
            (tmp_path / f"out/results/{name}/{result}").mkdir(parents=True)
            path = tmp_path / f"out/results/{name}/{result}/results.json"
            path.write_text('{"finished": true}')
    assert all("tone" not in note for note in steps_of(tmp_path, *judge)[1])
    assert own.is_paid(ELSEWHERE) and not own.is_paid("http://127.0.0.1:8000/v1")
    assert own.is_paid("http://localhost.example.com/v1") and not own.is_paid("model.gguf")


def test_replay_reads_the_logs_of_an_earlier_run(tmp_path):
    found, notes = steps_of(tmp_path, "--replay", "out/before")
    asked = [s.argv for s in found if s.name.startswith("ask-")]
    logs = [argv[argv.index("--replay") + 1] for argv in asked]
    assert "out/before/teacher/train/log.jsonl" in logs and len(logs) == 5 and not notes


def test_an_asking_step_is_done_where_nothing_can_be_asked_again(tmp_path):
    step = Step("x", (), str(tmp_path), "asked")
    assert not steps.done(step)
    for failed, refused, whether in ((0, 0, True), (2, 2, True), (2, 1, False)):
        counts = {"failed": failed, "of_these_refused": refused}
        (tmp_path / "report.json").write_text(json.dumps(counts))
        assert steps.done(step) is whether


# --- prompts ---

VICUNA = "How can I improve my time management skills?"  # of Vicuna's 80


def split(folder, given, *more):
    path = lines(folder / "given.jsonl", [{"prompt": p} for p in given])
    argv = ["split", path, "--held-out", "2", "--amounts", "3", "--out", str(folder / "o")]
    return prompts.main([*argv, *more])


def asked(folder, name):
    return [json.loads(x)["prompt"] for x in (folder / f"o/{name}.jsonl").read_text().splitlines()]


def test_evaluation_prompts_are_dropped_and_counted(tmp_path, capsys):
    given = [*PROMPTS[:6], f" {VICUNA.upper()}\n", PROMPTS[0], ""]
    against = lines(tmp_path / "nq.jsonl", [{"question": PROMPTS[5] + " ?"}])
    assert split(tmp_path, given, "--against", against) == 0
    said = capsys.readouterr().out
    for n, why in (
        (9, "prompts"),
        (1, "evaluation prompts of Vicuna, not to be trained on"),
        (1, "near a question of nq.jsonl"),
        (1, "repeated"),
        (1, "blank"),
        (2, "held out"),
    ):
        assert re.search(rf"^ +{n} {why}", said, re.MULTILINE), (why, said)
    kept = [*asked(tmp_path, "heldout"), *asked(tmp_path, "train")]
    assert sorted(kept) == sorted(PROMPTS[:5]) and len(asked(tmp_path, "train")) == 3


def test_what_is_near_a_held_out_prompt_is_not_trained_on(tmp_path, capsys):
    close = [p + " now" for p in PROMPTS]
    assert split(tmp_path, [*PROMPTS, *close], "--amounts", "20") == 0  # 24 less 2 pairs
    held = {p.removesuffix(" now") for p in asked(tmp_path, "heldout")}
    assert not held & {p.removesuffix(" now") for p in asked(tmp_path, "train")}
    said = capsys.readouterr().out
    assert re.search(r"^ +2 near a question of the held-out prompts", said, re.MULTILINE)
    assert re.search(r"^ +0 left over", said, re.MULTILINE)


def test_too_few_prompts_are_one_line_that_says_why(tmp_path, capsys):
    assert split(tmp_path, [*PROMPTS[:4], VICUNA]) == 2
    said = capsys.readouterr().err
    assert "2 are left to train on" in said and "1 evaluation prompts of Vicuna" in said


def test_public_evaluation_prompts_are_known(data_dir):
    from study import rows
    from study.curate import known

    for file, n in (
        ("eval_prompts/koala_test_set.jsonl", 180),
        ("eval_prompts/user_oriented_instructions.jsonl", 252),
        ("vicuna_eval/question.jsonl", 80),
        ("alpaca_eval/vicuna-7b/model_outputs.json.gz", 805),
    ):
        texts = [text for _, text, _ in rows.each([data_dir / file], rows.prompt_of)]
        assert len(texts) == n and all(known.name_of(t.upper()) for t in texts)
    alpaca = rows.each([data_dir / "alpaca/alpaca_data.3000.json.gz"], rows.prompt_of)
    assert sum(bool(known.name_of(t)) for _, t, _ in alpaca) < 5


def test_amounts_begin_one_another_and_answers_that_are_silence_are_counted(tmp_path, capsys):
    given = lines(tmp_path / "t.jsonl", [{"id": f"t{n}", "prompt": p} for n, p in enumerate("abc")])
    said = [{"id": f"t{n}", "instruction": p, "output": p * (n != 1)} for n, p in enumerate("abc")]
    source = lines(tmp_path / "said.jsonl", said)
    for first in (2, 3):
        out = str(tmp_path / f"{first}.jsonl")
        argv = ["nested", source, "--prompts", given, "--first", str(first), "--out", out]
        assert prompts.main(argv) == 0
    small, large = ((tmp_path / f"{n}.jsonl").read_text() for n in (2, 3))
    assert large.startswith(small) and large.count("\n") == 2
    assert "2 answers to 3 prompts, 1 without one" in capsys.readouterr().out


def test_local_data_that_gives_an_evaluation_away_is_dropped(tmp_path, capsys):
    rows = [{"question": q, "answer": "x"} for q in (*PROMPTS[:3], VICUNA)]
    source, out = lines(tmp_path / "local.jsonl", rows), tmp_path / "kept.jsonl"
    against = lines(tmp_path / "nq.jsonl", [{"question": PROMPTS[0]}])
    assert prompts.main(["local", source, "--against", against, "--out", str(out)]) == 0
    kept = [json.loads(x)["conversations"][0]["value"] for x in out.read_text().splitlines()]
    assert kept == PROMPTS[1:3]


# --- questions ---


def test_questions_of_ones_own_are_read_by_the_tasks(tmp_path):
    rows = [{"question": q, "answer": a} for q, a in FACTS]
    rows += [*CHOICES, CHOICES[0] | {"answer": "y"}, CHOICES[0] | {"answer": "d"}]
    path = lines(tmp_path / "q.jsonl", rows)
    assert questions.main(["own", path, "--shots", "1", "--out", str(tmp_path / "o")]) == 0
    shots = {"shots": 1, "train": str(tmp_path / "o/shots.jsonl")}
    open_ones = nq.Task(nq.Options(str(tmp_path / "o/asked.jsonl"), **shots), None)
    assert len(open_ones.ids) == 3 and open_ones.rows[0]["answer"] == ["a dog", "dog"]
    four = mmlu.Task(mmlu.Options(str(tmp_path / "o/choices"), 1), None)
    letters = [q.letter for q in four.questions.values()]
    assert letters == ["B", "C", "D", "C", "D"] and four.shots["miscellaneous"][0].letter == "A"


def test_the_sample_questions_are_questions():
    own_ones = questions.read("samples/questions.jsonl", questions.SHOTS)
    assert [own_ones.asked(kind, questions.SHOTS) for kind in ("open", "choices")] == [50, 20]


@pytest.mark.parametrize(
    "row, says",
    [
        ({"answer": "x"}, '"question" is missing'),
        ({"question": "x", "answer": 3}, '"answer" is no text'),
        ({"question": "x", "choices": list("abc"), "answer": "a"}, "not four different"),
        ({"question": "x", "choices": list("abcd"), "answer": "e"}, "names none"),
    ],
)
def test_a_row_that_is_no_question_is_named(row, says, tmp_path, capsys):
    path = lines(tmp_path / "q.jsonl", [{"question": "x", "answer": "y"}, row])
    assert questions.main(["own", path, "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert says in said and "row 2" in said and said.count("\n") == 1


def test_an_endpoints_answers_become_predictions_and_missing_ones_are_counted(tmp_path, capsys):
    problem = {"task_id": "h/1", "prompt": "import math\ndef f(x):\n"}
    whole = "Sure!\n```python\ndef f(x):\n    return x\n```\nDone."
    cases = {
        "nq": ({"question": "q", "answer": ["a"], "prompt": "Q: q"}, "A: Paris\nmore", "Paris"),
        "mmlu": ({"id": "s/0", "prompt": "Q: q"}, "B it is", "B it is"),
        "humaneval": (problem, whole, "import math\n\ndef f(x):\n    return x\n"),
    }
    for task, (row, text, wanted) in cases.items():
        asked = lines(tmp_path / "asked.jsonl", [row, row | {"prompt": "else"}])
        said = lines(tmp_path / "said.jsonl", [{"instruction": row["prompt"], "output": text}])
        out = tmp_path / f"{task}.jsonl"
        argv = ["answered", task, "--prompts", asked, "--answers", said, "--out", str(out)]
        assert questions.main(argv) == 0
        first, second = map(json.loads, out.read_text().splitlines())
        key = "solution" if task == "humaneval" else "prediction"
        assert first[key] == wanted and second.get(key, second.get("completion")) == ""
        assert "1 questions without an answer count as wrong" in capsys.readouterr().out


# --- whole ---


@pytest.mark.slow
def test_the_preset_runs_whole_beside_a_teacher_on_this_machine(tmp_path):
    base = tmp_path / "base1M"
    make = ["train.py", "--model", "tiny-s", "--tokenizer", "samples/tokenizer.model", "--data"]
    make += ["samples/dialogues.jsonl", "--block", "64", "--batch", "2", "--steps", "1"]
    make += ["--mesh", "1x1", "--dtype", "float32", "--out", str(base)]
    subprocess.run([sys.executable, *make], cwd=ROOT, check=True, capture_output=True)

    def behave(body, nth):
        n = len(body["messages"][-1]["content"])
        return answer(f"The answer is B.\n\n- one\n- two\n\nIn summary, {n}.")

    with LocalEndpoint(behave) as server:
        who = ("--teacher", server.url, "--teacher-model", "t")
        more = ("--mesh", "1x1", "--train-flags", "--block 64 --batch 2 --dtype float32")
        run = [sys.executable, "-m", "study.grid", *arguments(tmp_path, *more, who=who)]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        asked_once = len(server.requests)
        assert asked_once == 6 + 2 * 4 + 3 + 3
        again = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
        assert again.returncode == 0 and len(server.requests) == asked_once
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert {p["unit"] for p in report["points"] if p["role"] == "imitation"} == {"answers"}
    choices = [p for p in report["points"] if p["measure"] == "mmlu_own"]
    # the stand-in says B of questions whose answers are B, C, D
    assert [p["score"] for p in choices if p["role"] == "teacher"] == [pytest.approx(1 / 3)]
    assert {p["amount"] for p in choices if p["role"] == "imitation"} == {3.0, 6.0}
    page = (tmp_path / "out/report/index.html").read_text()
    assert "The teacher gave 20 answers" in page and "2 trainings" in page
    assert "6 answers" in page
