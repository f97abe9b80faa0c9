"""The preset real: its steps, nested amounts, what may not be trained on, the choice of the rate,
and the whole of it on a toy base.
"""

import csv
import gzip
import json
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import data
from study import style
from study.curate import __main__ as curate
from study.curate import decontaminate
from study.grid import __main__ as grid
from study.grid import rate, real, real_facts, running
from study.toxicity import __main__ as toxicity
from tasks import flags as flags_of_eval
from text import tokenizer
from training import flags as train_flags

TOKENIZER = ROOT / "samples" / "tokenizer.model"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def words(k):
    """A text that resembles no other of another number."""
    return " ".join(f"w{i}n{k}" for i in range(12))


def dialogue(k, query=None):
    turns = [{"from": "human", "value": query or f"Tell me of {words(k)}?"}]
    turns.append({"from": "gpt", "value": f"It is {words(k + 500)} and so on."})
    return {"id": f"d{k}", "conversations": turns}


def files_of(folder):
    """Every file of the preset, tiny -> {flag: its values}."""
    folder.mkdir(exist_ok=True)
    dev = [
        {"question": f"who is the king of {words(1000 + k)}", "answer": ["Mina"]} for k in range(4)
    ]
    train = [{"question": f"where is the town w{2000 + k}", "answer": ["Oslo"]} for k in range(40)]
    train.append({"question": dev[0]["question"], "answer": ["Mina"]})
    for split in ("dev", "test"):
        (folder / "mmlu" / split).mkdir(parents=True, exist_ok=True)
        with open(folder / "mmlu" / split / f"anatomy_{split}.csv", "w", newline="") as file:
            rows = (
                [f"which bone is {words(3000 + k)}?", "a", "b", "c", "d", "ABCD"[k % 4]]
                for k in range(5)
            )
            csv.writer(file).writerows(rows)
    problem = {
        "task_id": "T/0",
        "prompt": "def one():\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(f):\n    assert f() == 1\n",
    }
    prompts = [{"question_id": k, "text": f"How does {words(4000 + k)} work?"} for k in range(3)]
    answers = [{"question_id": k, "text": "First.\n- a\n- b\n\nOverall, yes."} for k in range(3)]
    sharegpt = [dialogue(k) for k in range(40)] + [dialogue(40, prompts[0]["text"])]
    hc3 = [
        {
            "question": f"What is {words(k)}?",
            "human_answers": ["no"],
            "chatgpt_answers": ["Yes, it"],
        }
        for k in range(100, 110)
    ]
    hc3.append({"question": dev[1]["question"], "human_answers": [], "chatgpt_answers": ["Mina"]})
    toxic = [
        {part: {"text": f"You {words(5000 + k)}", "toxicity": k / 60} for part in parts}
        for parts in [("prompt", "continuation")]
        for k in range(60)
    ]
    text = "\n".join(words(k) for k in range(60))
    (folder / "wiki.txt").write_text(text)
    return {
        "--sharegpt": [lines(folder / "sharegpt.jsonl", sharegpt)],
        "--hc3": [lines(folder / "hc3.jsonl", hc3)],
        "--plain": [lines(folder / "plain.jsonl", [{"text": words(k)} for k in range(60)])],
        "--nq-train": [lines(folder / "train.jsonl", train)],
        "--nq-dev": [lines(folder / "dev.jsonl", dev)],
        "--mmlu": [str(folder / "mmlu")],
        "--humaneval": [lines(folder / "humaneval.jsonl", [problem])],
        "--prompts": [lines(folder / "questions.jsonl", prompts)],
        "--teacher": [lines(folder / "teacher.jsonl", answers)],
        "--toxicity-prompts": [lines(folder / "toxic.jsonl", toxic[:4])],
        "--toxicity-train": [lines(folder / "scored.jsonl", toxic)],
        "--wikitext": [str(folder / "wiki.txt")],
    }


def command(tmp_path, *more, without=()):
    """The arguments of a whole preset real."""
    given = files_of(tmp_path / "in")
    said = [x for flag, v in given.items() if flag not in without for x in (flag, *v)]
    base = f"toy-1M={tmp_path / 'base'}"
    out = ("--out", str(tmp_path / "out"), "--run-untrusted-code")
    return ["--preset", "real", "--base", base, *said, *out, *more]


def parsed(argv):
    return grid.parser("real").parse_args(argv)


def test_every_command_is_one_that_the_programs_take_and_needs_what_a_step_before_it_makes(
    tmp_path,
):
    args = parsed(command(tmp_path))
    found, notes = real.steps(args)
    running.check(found)
    programs = {
        "train.py": train_flags.parser(),
        "eval.py": flags_of_eval.parser(),
        "data.py": data.parser(),
        "study.curate": curate.parser(),
        "study.grid.rate": rate.parser(),
        "study.style": style.parser(),
        "study.toxicity": toxicity.parser(),
    }
    made = {v for of in files_of(tmp_path / "in").values() for v in of} | {str(tmp_path / "base")}
    asked = set()
    for step in found:
        assert set(step.needs) <= made, f"{step.name} needs what no step before it makes"
        made.add(step.out)
        program, rest = step.argv[0], list(step.argv[1:])
        if program == "-m":
            program, rest = rest[0], rest[1:]
        own = programs[program].parse_args(rest)
        if program == "study.grid.rate" and own.command == "train":
            own = train_flags.parser().parse_args(own.argv)
            assert own.lr is None, "the chosen rate alone"
        assert step.out.startswith(str(own.out))
        asked.add(program)
        if program == "eval.py" and step.labels and step.labels["role"] == "base":
            assert str(tmp_path / "out/rate.json") in step.needs, "the rate before any benchmark"
    assert asked == set(programs)
    trained = [s.name for s in found if s.name.startswith("train-toy")]
    assert [n.removeprefix("train-toy-1M-") for n in trained] == [
        "broad-60k",
        "local",
        "broad-20k",
        "broad-180k",
        "mixed",
    ]
    assert {s.together for s in found} == {None, "eval real", "study real"}
    assert len(notes) == 1 and "minutes at 140 GFLOP/s" in notes[0]


def test_the_recipe_is_the_papers_with_the_warm_up_scaled(tmp_path):
    found, _ = real.steps(parsed(command(tmp_path)))
    rates = set()
    for step in (s for s in found if "train.py" in s.argv or "train" in s.argv):
        argv = step.argv[1:] if step.argv[0] == "train.py" else step.argv[4:]
        args = train_flags.parser().parse_args(list(argv))
        assert args.warmup_fraction == 0.1
        assert args.optimizer is args.epochs is args.schedule is args.dtype is args.mesh is None
        rates.add(args.lr)
    assert rates == {None, *real.RATES} and train_flags.DEFAULTS["lr"][1] in real.RATES


def test_what_lacks_a_file_is_left_out_by_name_and_limits_reach_their_task(tmp_path):
    without = ("--plain", "--humaneval", "--wikitext", "--nq-train")
    more = ("--limit", "nq0=7", "style=2", "--template", "llama3")
    found, notes = real.steps(parsed(command(tmp_path, *more, without=without)))
    said = "\n".join(notes)
    assert all(word in said for word in ("humaneval is left", "local im", "mixed im", "perplexity"))
    of = {s.name: s.argv for s in found}
    for name, n in (("nq0-toy-1M", "7"), ("answers-toy-1M", "2")):
        assert of[name][of[name].index("--limit") + 1] == n
    assert "--limit" not in of["mmlu-toy-1M"]
    for name in ("nq0-toy-1M", "answers-toy-1M", "pack-broad-20k"):
        assert of[name][of[name].index("--template") + 1] == "llama3"


def test_a_base_on_the_hub_is_nothing_to_wait_for(tmp_path):
    states = {}
    for base in (str(tmp_path / "absent"), "HuggingFaceTB/SmolLM2-135M"):
        found, notes = real.steps(parsed(command(tmp_path, "--base", base)))
        states[base] = set(running.states(found).values())
        assert any(base in s.argv for s in found)
    assert "minutes at" in notes[0]  # its name says its size
    waiting, ready = states.values()
    assert f"waits for {tmp_path / 'absent'}" in waiting and ready == {"to do"}


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        (("--limit", "mmlu"), "TASK=N"),
        (("--amounts", "60k", "20k"), "the smallest first"),
        (("--amounts", "20k", "20k"), "each once"),
        (("--rates", "1e-3", "1e-3"), "each once"),
        (("--held-out", "0"), "at least 1"),
        (("--base", "a b=x"), "NAME=PATH"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(tmp_path, capsys, more, remedy):
    assert grid.main(command(tmp_path, *more)) == 2
    said = capsys.readouterr().err
    assert remedy in said and said.count("\n") == 1


def run_steps(found, names):
    """Run some steps here, as a user would by hand."""
    for step in (s for s in found if s.name in names):
        subprocess.run([sys.executable, *step.argv], cwd=ROOT, check=True, capture_output=True)


def test_nothing_that_is_asked_is_trained_on_and_a_smaller_amount_begins_a_larger(tmp_path):
    more = ("--amounts", "1k", "2k", "--held-out", "5", "--block", "64", "--template", "roles")
    argv = command(tmp_path, *more)
    argv[argv.index("--base") + 1] = f"toy-1M={TOKENIZER}"  # packing wants its tokenizer alone
    found, _ = real.steps(parsed(argv))
    run_steps(found, ("decontaminate", "mix", "split", "pairs", "pack-broad-1k", "pack-broad-2k"))
    out = tmp_path / "out/data"

    def queries(path):
        rows = map(json.loads, gzip.open(path, "rt"))
        return [r["conversations"][0]["value"] for r in rows]

    report = json.loads((out / "decontaminated/report.json").read_text())
    assert report["dropped"] == {"questions.jsonl": 1, "dev.jsonl": 1}
    assert report["kept"] == report["dialogues"] - 2 >= 45
    assert report["prompts"] == {
        "dev.jsonl": 4,
        "mmlu": 5,
        "humaneval.jsonl": 1,
        "questions.jsonl": 3,
    }
    train, held = (queries(out / f"split/{name}.jsonl.gz") for name in ("train", "heldout"))
    assert len(held) == 5 and len(train) == report["kept"] - 5 and not set(train) & set(held)
    assert all(q.startswith("Tell me of") for q in held), "of ShareGPT"
    pairs = queries(out / "pairs/pairs.jsonl.gz")
    assert len(pairs) == 40 and not any("king" in q for q in pairs)
    small, large = (tokens_of(out / f"broad-{a}") for a in ("1k", "2k"))
    assert 500 < len(small) < 1000 < len(large) < 2000
    assert np.array_equal(small, large[: len(small)])


def tokens_of(folder):
    """The tokens of a packed directory as one array, padding left out."""
    rows = data.Dataset(folder, "train", tokenizer.load(TOKENIZER).size)
    tokens = rows.rows(np.arange(len(rows)))["tokens"]
    whole = np.concatenate([tokens[0][:1], *(row[1:] for row in tokens)])  # blocks share a token
    return whole[: json.loads((folder / "pack.json").read_text())["splits"]["train"]["tokens"]]


def test_a_dialogue_goes_for_any_of_its_queries_and_the_threshold_decides(tmp_path):
    asked = {"question": "who sang the song of the blue river at the fair", "answer": ["x"]}
    prompts = lines(tmp_path / "dev.jsonl", [asked])
    rows = [dialogue(k) for k in range(3)]
    rows[1]["conversations"] += [
        {"from": "human", "value": "who sang the song of the blue river at the inn"},
        {"from": "gpt", "value": "Nobody."},
    ]
    mix = lines(tmp_path / "mix.jsonl", rows)
    for threshold, kept in ((20, ["d0", "d2"]), (95, ["d0", "d1", "d2"])):
        out = tmp_path / f"out{threshold}"
        argv = ["decontaminate", mix, "--prompts", prompts, "--threshold", str(threshold)]
        assert curate.main([*argv, "--out", str(out)]) == 0
        assert [json.loads(r)["id"] for r in gzip.open(out / "kept.jsonl.gz", "rt")] == kept
    near = decontaminate.nearest(["no word of it"], [("f", asked["question"])], 1)
    assert near["no word of it"].score < 20


def heldout(folder, lr, nats, tokens=100):
    """A run tried with a rate, and its held-out loss -> the result's folder."""
    run = folder / f"run-{lr:g}"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"args": {"lr": lr}}))
    result = {
        "task": "perplexity",
        "finished": True,
        "settings": {},
        "n": 9,
        "interval": None,
        "model": str(run),
    }
    place = folder / f"heldout-{lr:g}"
    place.mkdir()
    (place / "results.json").write_text(
        json.dumps(result | {"tokens": tokens, "nats_per_token": nats, "score": 1.0})
    )
    return str(place)


def test_the_rate_of_least_held_out_loss_is_chosen_and_its_run_taken(tmp_path, capsys):
    tried = [heldout(tmp_path, lr, n) for lr, n in ((2e-3, 1.5), (6e-4, 1.25), (2e-4, 1.25))]
    out, link = str(tmp_path / "rate.json"), tmp_path / "runs/broad"
    assert rate.main(["choose", *tried, "--out", out]) == 0
    chosen = json.loads(pathlib.Path(out).read_text())
    assert chosen["lr"] == 2e-4, "of two with the same loss the smaller"
    assert [c["lr"] for c in chosen["candidates"]] == [2e-4, 6e-4, 2e-3]
    assert capsys.readouterr().out.count("<- chosen") == 1
    for _ in range(2):  # a second time it is there
        assert rate.main(["take", out, "--out", str(link)]) == 0
    assert json.loads((link / "run.json").read_text())["args"]["lr"] == 2e-4
    other = heldout(tmp_path, 1e-5, 1.0, tokens=99)
    assert rate.main(["choose", *tried, other, "--out", out]) == 2
    assert "different held-out tokens" in capsys.readouterr().err
    assert rate.main(["choose", str(tmp_path), "--out", out]) == 2


def test_the_chosen_rate_reaches_train_py(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(rate.os, "execv", lambda program, argv: ran.append(argv))
    chosen = tmp_path / "rate.json"
    chosen.write_text(json.dumps({"lr": 6e-4, "run": "r"}))
    assert rate.main(["train", str(chosen), "--init", "m", "--batch", "4"]) == 0
    assert ran[0][1].endswith("train.py")
    assert ran[0][2:] == ["--init", "m", "--batch", "4", "--lr", "0.0006"]
    chosen.write_text("{}")
    assert rate.main(["train", str(chosen), "--init", "m"]) == 2 and len(ran) == 1


def test_an_instruct_model_of_four_bits_is_called_that(smollm2):
    name, path = real_facts.named_base(f"SmolLM2-135M={smollm2}")
    said = " ".join(real_facts.about_base(name, path))
    assert "4-bit (Q4_1)" in said and "instruct model" in said
    assert real_facts.weights(name, path) == 134_515_008


@pytest.mark.slow
def test_the_whole_preset_runs_on_a_toy_base_and_is_reported(tmp_path):
    """Every step, on a toy of random weights that learns nothing."""
    base = ("train.py", "--model", "tiny-s", "--tokenizer", str(TOKENIZER), "--steps", "1")
    toy = (*base, "--data", str(ROOT / "samples/dialogues.jsonl"), "--block", "64", "--batch", "2")
    toy += ("--eval-fraction", "0", "--mesh", "1x1", "--out", str(tmp_path / "base"))
    subprocess.run([sys.executable, *toy], cwd=ROOT, check=True, capture_output=True)
    small = ("--amounts", "1k", "2k", "--held-out", "4", "--block", "64", "--batch", "2")
    more = (*small, "--template", "roles", "--pairs", "32", "--wikitext-tokens", "200", "--limit")
    argv = [*command(tmp_path, *more, "humaneval=1"), "--rates", "2e-3", "2e-4"]
    run = [sys.executable, "-m", "study.grid", *argv]
    said = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
    out = tmp_path / "out"
    found = json.loads((out / "report/report.json").read_text())
    assert not found["missing"] and " 0 failed, 0 of " in said.stdout
    measures = {p["measure"] for p in found["points"]}
    assert measures >= {"nq", "mmlu", "humaneval", "unigram", "toxicity", "perplexity"}
    assert "perplexity_heldout" in measures
    kinds = {(p["role"], p["source"], p["amount"]) for p in found["points"]}
    assert kinds == {
        ("base", None, None),
        ("imitation", "broad", 1000),
        ("imitation", "broad", 2000),
        ("imitation", "mixed", 2000),
        ("imitation", "local", 32 * real_facts.PAIR_TOKENS),
    }
    claims = {f["claim"] for f in found["findings"]}
    assert claims == {"style", "knowledge", "perplexity", "toxicity", "local", "mixed"}
    page = (out / "report/index.html").read_text()
    for text in ("a perfect teacher", "The learning rate is", "minutes on", "Paired differences"):
        assert text in page
    again = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0 and "0 steps ran" in again.stdout
    assert shlex.join(["-m", "study.grid.rate"]) in (out / "commands.sh").read_text()
