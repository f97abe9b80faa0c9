"""study.synthesize against a local teacher that misbehaves: exactly --n pairs, nothing asked twice,
the same bytes however the run was interrupted.
"""

import hashlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from local_endpoint import LocalEndpoint, answer, half, slow, status

from study.synthesize import __main__ as synthesize
from study.synthesize import pairs
from text import dialogues

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch):
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def draw_of(body):
    """A number for a request: what it says, and how often that was asked (equal requests give other
    answers).
    """
    return int(hashlib.sha256(json.dumps(body).encode()).hexdigest()[:8], 16)


def teacher(body, nth, trouble=True):
    """Pairs that depend on the request alone; sometimes a seed, a duplicate, a script tag, a
    malformed one; before many of them an error.
    """
    seed = draw_of(body)
    if trouble and nth == 0 and seed % 3 == 0:
        return [status(429, Retry_After="0.01"), status(500), half(), (200, "{"), slow(0.8)][
            seed // 3 % 5
        ]
    rng = random.Random(seed)
    lines = ["Sure! Here are some questions:", ""]
    for _ in range(5):
        k = rng.randrange(2000)
        lines += [f"Q: who wrote book number {k}?", f"A: Author {k}", ""]
    lines += [
        "Q: Who Sang the rap song change clothes?",
        "A: Jay-Z",
        "",
        "Q: what is excluded",
        "A: This",
        "Q: no answer here",
        "Q: <script>alert(1)</script> of whom?",
        "A: <b>Bob</b>",
    ]
    return answer("\n".join(lines), prompt_tokens=100, completion_tokens=50)


def run(server, out, *more):
    return synthesize.main(
        [
            "--teacher",
            server.url,
            "--teacher-model",
            "m",
            "--out",
            str(out),
            "--timeout",
            "0.5",
            *map(str, more),
        ]
    )


def rows(out):
    return [json.loads(line) for line in (out / "dialogues.jsonl").read_text().splitlines()]


def report(out):
    return json.loads((out / "report.json").read_text())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    from study import endpoint

    init = endpoint.Endpoint.__init__
    monkeypatch.setattr(
        endpoint.Endpoint,
        "__init__",
        lambda self, url, log, **how: init(self, url, log, **how, backoff=0.01),
    )


def test_exactly_n_pairs_come_of_a_teacher_in_trouble(tmp_path, capsys):
    (tmp_path / "exclude.jsonl").write_text(
        json.dumps({"question": "What is EXCLUDED?", "answer": ["x"]}) + "\n"
    )
    with LocalEndpoint(teacher) as server:
        assert (
            run(server, tmp_path / "out", "--n", 60, "--exclude", tmp_path / "exclude.jsonl") == 0
        )
        sent = [body for body, _ in server.requests]
    assert all(
        body["temperature"] == 1.0 and body["model"] == "m" and "draw" not in body for body in sent
    )
    found = rows(tmp_path / "out")
    assert len(found) == 60 == len({json.dumps(r["conversations"]) for r in found})
    assert all([t["from"] for t in r["conversations"]] == ["human", "gpt"] for r in found)
    asked = [r["conversations"][0]["value"] for r in found]
    assert not any("change clothes" in q or "excluded" in q or "no answer" in q for q in asked)
    assert asked.count("<script>alert(1)</script> of whom?") == 1  # text like any other
    r = report(tmp_path / "out")
    assert (
        r["kept"] == 60
        and r["failed"] == 0
        and r["requests"]
        == r["answered"]
        == r["malformed"]
        == r["copies_of_a_seed"]
        == r["excluded"]
    )
    assert (
        r["parsed"]
        == 8 * r["requests"]
        == r["kept"] + r["duplicates"] + r["copies_of_a_seed"] + r["excluded"] + r["surplus"]
    )
    assert (r["prompt_tokens"], r["completion_tokens"]) == (
        100 * r["requests"],
        50 * r["requests"],
    ) and r["surplus"] < 30
    assert (
        list(dialogues.read_dialogues(tmp_path / "out" / "dialogues.jsonl"))[0]["conversations"]
        == found[0]["conversations"]
    )
    assert "retried" in capsys.readouterr().out


def test_each_request_shows_five_of_the_ten_seeds_at_random_and_the_same_each_time(tmp_path):
    prompts = [pairs.prompt(pairs.SEEDS, 0, k) for k in range(200)]
    assert (
        prompts == [pairs.prompt(pairs.SEEDS, 0, k) for k in range(200)] and len(set(prompts)) > 190
    )
    assert pairs.prompt(pairs.SEEDS, 1, 0) != prompts[0]
    for text in prompts:
        assert text.startswith("I want you to generate") and "For example,\n\nQ: " in text
        shown = re.findall(r"Q: (.*)\nA: (.*)", text)
        assert len(shown) == 5 == len(set(shown)) and set(shown) <= set(pairs.SEEDS)
    assert {q for text in prompts for q, _ in re.findall(r"Q: (.*)\nA: (.*)", text)} == {
        q for q, _ in pairs.SEEDS
    }


class Paced:
    """A teacher that answers nothing from a certain request on until its gate opens: a run cannot
    end before it is interrupted.
    """

    def __init__(self):
        self.gate, self.lock = threading.Event(), threading.Lock()
        self.seen, self.held_from = 0, 10**9

    def __call__(self, body, nth):
        with self.lock:
            self.seen += 1
            held = self.seen > self.held_from
        if held:
            self.gate.wait(30)
        return teacher(body, 0, trouble=False)

    def hold(self, more):
        self.gate.clear()
        self.held_from = self.seen + more

    def go_on(self):
        self.held_from = 10**9
        self.gate.set()


def interrupted(command, log, target, sign, paced):
    """What a run said that got a signal when its log had `target` lines."""

    def listen():  # a background job of a shell is started deaf to it
        return signal.signal(signal.SIGINT, signal.default_int_handler)

    paced.hold(30)
    pipes = dict(stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    child = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), preexec_fn=listen, **pipes)
    while child.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < target):
        time.sleep(0.01)
    child.send_signal(sign)
    time.sleep(0.2)  # the signal is there before the answers are
    paced.go_on()
    err = child.communicate(timeout=20)[1]
    assert child.returncode == (130 if sign == signal.SIGINT else -9), err
    return err


def test_500_pairs_interrupted_twice_are_those_of_a_run_in_one_go_and_of_a_replay(tmp_path):
    paced, log = Paced(), tmp_path / "cut" / "log.jsonl"
    flags = "--teacher-model m --n 500 --seed 3 --out".split()
    with LocalEndpoint(paced) as server:
        command = [sys.executable, "-m", "study.synthesize", *flags, str(tmp_path / "cut")]
        command += ["--teacher", server.url, "--concurrency", "4"]
        for target, sign in ((25, signal.SIGINT), (50, signal.SIGKILL)):
            err = interrupted(command, log, target, sign, paced)
            assert sign != signal.SIGINT or "the same command goes on" in err
            assert not (tmp_path / "cut" / "dialogues.jsonl").exists()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        keys = [json.loads(line)["key"] for line in log.read_text().splitlines()]
        assert (
            len(keys) == len(set(keys)) == report(tmp_path / "cut")["requests"]
        )  # nothing was asked for twice and kept
        assert len(server.requests) <= len(keys) + 8  # what was on its way at two kills
        assert run(server, tmp_path / "whole", "--n", 500, "--seed", 3) == 0
    assert len(rows(tmp_path / "cut")) == 500
    assert synthesize.main([*flags, str(tmp_path / "again"), "--replay", str(log)]) == 0
    for name in ("dialogues.jsonl", "report.json"):
        assert (
            (tmp_path / "cut" / name).read_bytes()
            == (tmp_path / "whole" / name).read_bytes()
            == (tmp_path / "again" / name).read_bytes()
        )


@pytest.mark.parametrize(
    "text, expected, malformed",
    [
        ("Q: a b?\nA: c\nQ: d?\nA: e", [("a b?", "c"), ("d?", "e")], 0),
        ("1. Q: a?\n   A: b\n2. Q: c?\n   A: d", [("a?", "b"), ("c?", "d")], 0),
        ("**Q:** a?\n**A:** b", [("a?", "b")], 0),
        ("Question 1: a?\nAnswer: b", [("a?", "b")], 0),
        ("Q: a? A: b", [("a?", "b")], 0),
        ("Q: a\nb?\nA: c\nd\n\nI hope this helps!", [("a b?", "c d")], 0),
        ("Here you are:\n\nQ: a?\n\nA: b", [("a?", "b")], 0),
        ("Q: a?\nQ: b?\nA: c", [("b?", "c")], 1),
        ("A: b\nQ: a?", [], 2),
        ("Q:\nA: x\nQ: a?\nA:", [], 2),
        ("", [], 0),
        ("I cannot do that.", [], 0),
        ("Q: a?\nA: b\nA: c", [("a?", "b")], 1),
        ("q: a?\r\na: b\r\n", [("a?", "b")], 0),
        ("Q: what is vitamin a?\nA: retinol", [("what is vitamin a?", "retinol")], 0),
    ],
)
def test_pairs_are_read_out_of_an_answer(text, expected, malformed):
    assert pairs.parse(text) == (expected, malformed)


def test_the_last_pair_of_an_answer_that_was_cut_off_is_malformed():
    assert pairs.parse("Q: a?\nA: b\nQ: c?\nA: the lo", cut_off=True) == ([("a?", "b")], 1)


def test_own_seeds_and_what_is_wrong_with_them(tmp_path, capsys):
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text(
        "".join(
            json.dumps({"question": f"my question {k}", "answer": [f"mine {k}", "other"]}) + "\n"
            for k in range(6)
        )
    )
    with LocalEndpoint(lambda body, nth: teacher(body, nth, trouble=False)) as server:
        assert run(server, tmp_path / "out", "--n", 5, "--seeds", seeds) == 0
        assert (
            "my question" in server.requests[0][0]["messages"][0]["content"]
            and "millionare" not in server.requests[0][0]["messages"][0]["content"]
        )
        seeds.write_text(seeds.read_text().split("\n")[0] + "\n")
        assert run(server, tmp_path / "out", "--n", 5, "--seeds", seeds) == 2
    assert "5 or more" in capsys.readouterr().err


def test_a_teacher_that_repeats_itself_is_not_asked_for_ever(tmp_path, capsys):
    with LocalEndpoint(lambda body, nth: answer("Q: always this?\nA: yes")) as server:
        assert run(server, tmp_path / "out", "--n", 30) == 2
        assert len(server.requests) < 200
    err = capsys.readouterr().err
    assert "no new pair" in err and "--n 1" in err and "Traceback" not in err


def test_a_teacher_that_only_fails_ends_in_one_line(tmp_path, capsys):
    with LocalEndpoint(lambda body, nth: status(500)) as server:
        assert run(server, tmp_path / "out", "--n", 30, "--retries", 1) == 2
    assert (
        "failed" in capsys.readouterr().err and not (tmp_path / "out" / "dialogues.jsonl").exists()
    )


def test_without_a_teacher_or_with_n_of_0_one_line_says_so(tmp_path, capsys):
    assert (
        synthesize.main(["--teacher-model", "m", "--out", str(tmp_path)]) == 2
        and "--teacher URL" in capsys.readouterr().err
    )
    assert (
        synthesize.main(["--teacher-model", "m", "--out", str(tmp_path), "--n", "0"]) == 2
        and "--n 0" in capsys.readouterr().err
    )


def test_answers_to_prompts_come_in_their_order_and_go_on(tmp_path, capsys):
    asked = [
        {"id": "a", "prompt": "first"},
        {"id": "b", "instruction": "second", "instances": [{"input": "more"}]},
        {"question_id": 3, "text": "silent"},
        {"id": "d", "prompt": "broken"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in asked))
    lock, broken = threading.Lock(), [True]

    def behave(body, nth):
        said = body["messages"][-1]["content"]
        assert (
            body["messages"][0] == {"role": "system", "content": "Be kind."}
            and body["max_tokens"] == 9
        )
        with lock:
            return (
                answer("")
                if said == "silent"
                else status(400, "no")
                if said == "broken" and broken[0]
                else answer(
                    f"<script>{said}</script>", finish="length" if said == "first" else "stop"
                )
            )

    with LocalEndpoint(behave) as server:
        command = ["answers", "--prompts", str(tmp_path / "p.jsonl"), "--teacher", server.url]
        command += ["--teacher-model", "m", "--out", str(tmp_path / "out")]
        command += ["--system", "Be kind.", "--max-tokens", "9"]
        assert synthesize.main(command) == 0
        assert "1 requests failed" in capsys.readouterr().err
        found = rows(tmp_path / "out")
        assert [
            (r["id"], r["conversations"][0]["value"], r["conversations"][1]["value"]) for r in found
        ] == [
            ("a", "first", "<script>first</script>"),
            ("b", "second\n\nmore", "<script>second\n\nmore</script>"),
        ]
        assert {
            k: report(tmp_path / "out")[k] for k in ("failed", "without_text", "cut_off", "kept")
        } == {"failed": 1, "without_text": 1, "cut_off": 1, "kept": 2}
        broken[0], before = False, len(server.requests)
        assert synthesize.main(command) == 0
        assert len(server.requests) == before + 1 and [r["id"] for r in rows(tmp_path / "out")] == [
            "a",
            "b",
            "d",
        ]
        assert synthesize.main([*command, "--samples", "2"]) == 0
        assert [r["id"] for r in rows(tmp_path / "out")][:2] == ["a.0", "a.1"] and len(
            server.requests
        ) == before + 5


def test_two_runs_do_not_write_one_folder(tmp_path, capsys):
    from study import rows as shared

    with LocalEndpoint(teacher) as server, shared.locked(tmp_path / "out"):
        assert run(server, tmp_path / "out", "--n", 5) == 2
        assert "another run" in capsys.readouterr().err and not server.requests
