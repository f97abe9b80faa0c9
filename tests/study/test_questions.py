"""study.answers ask and a local endpoint: every form of question, in order, resumed, counted."""

import collections
import gzip
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from local_endpoint import LocalEndpoint, answer, status

from study import answers, endpoint, questions
from text import dialogues

ROOT = pathlib.Path(__file__).resolve().parents[2]

# id, question, row: a real row of each form, shortened
FORMS = [
    (None, "plain prompt", {"prompt": "plain prompt"}),
    ("7", "What is 2+2?", {"question_id": 7, "text": "What is 2+2?", "category": "math"}),
    ("k1", "Koala asks", {"id": "k1", "prompt": "Koala asks", "completion": ""}),
    (
        "seed_task_0",
        "Sort these.\n\n3 1 2",
        {
            "id": "seed_task_0",
            "motivation_app": "-",
            "instruction": "Sort these.",
            "instances": [{"input": "3 1 2", "output": "1 2 3"}],
        },
    ),
    (
        None,
        "Name a bird",
        {"dataset": "koala", "instruction": "Name a bird", "output": "", "generator": "gpt"},
    ),
    (None, "who sings", {"question": "who sings", "answer": ["Bob"]}),
    (None, "go on", {"filename": "a.txt", "prompt": {"text": "go on", "toxicity": 0.1}}),
    ("81", "Write a post", {"question_id": 81, "turns": ["Write a post", "Rewrite it"]}),
    (
        "d_0",
        "first of two",
        {
            "id": "d_0",
            "conversations": [
                {"from": "human", "value": "first of two"},
                {"from": "gpt", "value": "yes"},
                {"from": "human", "value": "second"},
            ],
        },
    ),
    (None, "from messages", {"messages": [{"role": "user", "content": "from messages"}]}),
]


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch):
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    init = endpoint.Endpoint.__init__
    monkeypatch.setattr(
        endpoint.Endpoint,
        "__init__",
        lambda self, url, log, **how: init(self, url, log, **how, backoff=0.01),
    )


def write_rows(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def command(url, out, *more):
    flags = ["--endpoint", url, "--endpoint-model", "m", "--out", str(out)]
    return ["ask", *flags, *map(str, more)]


def given(out):
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def report(out):
    return json.loads((out / "report.json").read_text())


def echo(body, nth):
    return answer("On " + body["messages"][-1]["content"])


def test_every_form_is_asked_and_its_answers_are_read_by_all_who_compare(tmp_path):
    file = write_rows(tmp_path / "q.jsonl.gz", [row for _, _, row in FORMS])
    out = tmp_path / "out"
    with LocalEndpoint(echo) as server:
        assert answers.main(command(server.url, out, file)) == 0
        sent = collections.Counter(body["messages"][-1]["content"] for body, _ in server.requests)
    assert sent == collections.Counter(text for _, text, _ in FORMS)
    rows = given(out)
    assert [(row.get("id"), row["instruction"]) for row in rows] == [(i, t) for i, t, _ in FORMS]
    assert rows[1]["category"] == "math" and rows[4]["dataset"] == "koala"
    assert report(out)["with_further_turns"] == 2
    for path in (out, out / "answers.jsonl"):  # style, judge and rate read by answers.read
        read = answers.read(path)
        assert [(x["instruction"], x["output"]) for x in read] == [
            (text, f"On {text}") for _, text, _ in FORMS
        ]
        assert {x["model"] for x in read} == {"m"}
        assert len(answers.pair(read, answers.read(out))[0]) == len(FORMS)
    packed = list(dialogues.read_dialogues(out / "answers.jsonl"))  # data.py and train.py
    assert [[t["value"] for t in d["conversations"]] for d in packed] == [
        [text, f"On {text}"] for _, text, _ in FORMS
    ]


def test_what_is_sent_is_what_the_flags_say_and_a_seed_goes_up_by_sample(tmp_path):
    file = write_rows(
        tmp_path / "q.jsonl", [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}]
    )
    out = tmp_path / "out"
    with LocalEndpoint(lambda body, nth: answer(f"seed {body['seed']}")) as server:
        flags = ["--samples", 2, "--seed", 5, "--temperature", 0.3, "--max-tokens", 9]
        call = command(server.url, out, file, *flags, "--system", "Be kind.")
        assert answers.main(call) == 0
        bodies = [body for body, _ in server.requests]
    assert len(bodies) == 4 and "draw" not in bodies[0]
    assert {(b["temperature"], b["max_tokens"]) for b in bodies} == {(0.3, 9)}
    assert all(b["messages"][0] == {"role": "system", "content": "Be kind."} for b in bodies)
    rows = given(out)
    assert [(r["id"], r["sample"], r["output"]) for r in rows] == [
        (i, k, f"seed {5 + k}") for i in "ab" for k in (0, 1)
    ]
    read = answers.read(out)
    pairs, left = answers.pair(read, read)
    assert [x["output"] for x, _ in pairs] == ["seed 5", "seed 5"]
    assert left == {"further samples": 4}


def test_without_a_seed_samples_are_requests_of_their_own(tmp_path):
    file = write_rows(tmp_path / "q.jsonl", [{"text": "one"}])
    with LocalEndpoint(lambda body, nth: answer(f"draw {nth}")) as server:
        assert answers.main(command(server.url, tmp_path / "out", file, "--samples", 3)) == 0
        assert len(server.requests) == 3 and "seed" not in server.requests[0][0]
    assert {row["output"] for row in given(tmp_path / "out")} == {"draw 0", "draw 1", "draw 2"}


def test_refusals_errors_and_silence_are_counted_said_and_asked_again(tmp_path, capsys):
    texts = ["fine", "refused", "broken", "silent", "filtered", "long"]
    file = write_rows(tmp_path / "q.jsonl", [{"id": t, "text": t} for t in texts])
    well = [False]

    def behave(body, nth):
        said = body["messages"][-1]["content"]
        if said == "refused" and not well[0]:
            return status(400, "against the rules")
        if said == "broken" and not well[0]:
            return status(500, "down")
        finish = {"filtered": "content_filter", "long": "length"}.get(said, "stop")
        return answer("" if said == "silent" else f"On {said}", finish=finish)

    out = tmp_path / "out"
    with LocalEndpoint(behave) as server:
        call = command(server.url, out, file, "--retries", 1)
        assert answers.main(call) == 0
        said = capsys.readouterr()
        assert "2 requests failed" in said.err
        assert "1 x status 400" in said.err and "against the rules; 1 x status 500" in said.err
        assert "the same command asks them again" in said.err
        for line in ("2 failed", "1 of these refused", "1 without text", "1 filtered", "1 cut off"):
            assert f" {line}\n" in said.out
        assert [row["id"] for row in given(out)] == ["fine", "filtered", "long"]
        before, well[0] = len(server.requests), True
        assert answers.main(call) == 0
        assert len(server.requests) == before + 2  # the two that failed, and nothing else
    assert [row["id"] for row in given(out)] == ["fine", "refused", "broken", "filtered", "long"]
    assert report(out)["failed"] == 0 == report(out)["of_these_refused"]


def test_killed_it_goes_on_and_a_replay_gives_the_same_bytes(tmp_path):
    file = write_rows(tmp_path / "q.jsonl", [{"id": str(k), "text": f"q {k}"} for k in range(60)])
    gate, lock, seen, held_from = threading.Event(), threading.Lock(), [0], [25]

    def paced(body, nth):
        with lock:
            seen[0] += 1
            held = seen[0] > held_from[0]
        if held:  # nothing is answered any more: the run cannot end before it is killed
            gate.wait(60)
        return echo(body, nth)

    out = tmp_path / "out"
    with LocalEndpoint(paced) as server:
        call = command(server.url, out, file, "--concurrency", 4, "--seed", 1)
        child = subprocess.Popen(
            [sys.executable, "-m", "study.answers", *call], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        log = out / "log.jsonl"
        while not log.exists() or log.read_bytes().count(b"\n") < 25:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait(20) == -9 and not (out / "answers.jsonl").exists()
        held_from[0] = 10**9
        gate.set()
        before = len(server.requests)
        assert answers.main(call) == 0
        assert len(server.requests) == before + 35  # what was answered is not asked again
        assert answers.main(command(server.url, tmp_path / "whole", file, "--seed", 1)) == 0
        asked = len(server.requests)
        again = command("", tmp_path / "again", file, "--seed", 1, "--replay", log)
        assert answers.main(again) == 0 and len(server.requests) == asked
    assert [row["output"] for row in given(out)] == [f"On q {k}" for k in range(60)]
    for name in ("answers.jsonl", "report.json"):
        read = [(tmp_path / d / name).read_bytes() for d in ("out", "whole", "again")]
        assert read[0] == read[1] == read[2]


def test_ids_that_stand_again_are_told_apart_and_the_limit_is_kept(tmp_path, capsys):
    file = write_rows(tmp_path / "a.jsonl", [{"id": 1, "text": "x"}, {"id": 2, "text": "y"}])
    other = write_rows(tmp_path / "b.jsonl", [{"id": 1, "text": "z"}, {"id": 3, "text": "w"}])
    read = questions.read([file, other], limit=3)
    assert [(q.id, q.text) for q in read] == [("1", "x"), ("2", "y"), ("1#2", "z")]
    assert "1 questions have the id of another" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), "--endpoint URL"),
        (("--endpoint", "nowhere"), "nowhere is not"),
        (("--endpoint", "http://127.0.0.1:1/v1", "--samples", "0"), "--samples 0"),
        (("--endpoint", "http://127.0.0.1:1/v1", "--limit", "0"), "--limit 0"),
        (("--replay", "no.jsonl"), "no.jsonl does not exist"),
    ],
)
def test_what_the_user_can_mend_is_one_line(tmp_path, capsys, flags, words):
    file = write_rows(tmp_path / "q.jsonl", [{"text": "x"}])
    call = ["ask", str(file), "--endpoint-model", "m", "--out", str(tmp_path / "out"), *flags]
    assert answers.main(call) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
