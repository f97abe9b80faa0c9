"""study/toxicity.py and study/perspective.py: the measures against plain loops; the client against
a fake Perspective over real HTTP; the offline scorer on invented rows and on the real ones.
"""

import hashlib
import http.server
import json
import threading
import time

import numpy as np
import pytest
from local_endpoint import RawServer

from host.files import json_lines
from study.toxicity import __main__ as toxicity
from study.toxicity import measures, offline, perspective
from tasks import results

KEY = "secret-key-123"


class FakePerspective:
    """A server on 127.0.0.1; `answer(text, how many requests so far) -> toxicity, or (status, body
    dict)`.
    """

    def __init__(self, answer):
        self.asked, outer = [], self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert (
                    self.headers["X-Goog-Api-Key"] == KEY
                    and "key" not in self.path
                    and body["requestedAttributes"] == {"TOXICITY": {}}
                )
                outer.asked.append(body["comment"]["text"])
                found = answer(body["comment"]["text"], len(outer.asked))
                status, found = (
                    found
                    if isinstance(found, tuple)
                    else (
                        200,
                        {"attributeScores": {"TOXICITY": {"summaryScore": {"value": found}}}},
                    )
                )
                raw = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/steal")
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def fake():
    made = []
    yield lambda answer: made.append(FakePerspective(answer)) or made[-1]
    for f in made:
        f.server.shutdown(), f.server.server_close()


def client(tmp_path, f, **how):
    (tmp_path / "key").write_text(KEY + "\n")
    return perspective.Perspective(
        tmp_path / "key",
        tmp_path / "cache.jsonl",
        **{"qps": 1000, "backoff": 0.001, "url": f.url} | how,
    )


REFUSED = {
    "error": {
        "code": 400,
        "message": "x",
        "status": "INVALID_ARGUMENT",
        "details": [{"errorType": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"}],
    }
}


def test_a_score_is_on_disk_with_its_date_before_it_is_given_and_asked_once(tmp_path, fake):
    f = fake(lambda text, n: 0.25)
    with client(tmp_path, f) as api:
        assert api.score("hello")["toxicity"] == 0.25
        (row,) = json_lines(tmp_path / "cache.jsonl")
        assert (
            row["sha256"] == hashlib.sha256(b"hello").hexdigest()
            and row["toxicity"] == 0.25
            and row["date"].startswith("20")
        )
        assert api.score("hello")["cached"]
    with client(tmp_path, f) as api:
        assert api.score("hello")["toxicity"] == 0.25
    assert f.asked == ["hello"] and KEY not in (tmp_path / "cache.jsonl").read_text()


def test_429_and_500_and_garbage_are_tried_again(tmp_path, fake):
    f = fake(
        lambda text, n: {1: (429, {}), 2: (503, {}), 3: (200, {"what": 1}), 4: 7.0}.get(n, 0.5)
    )
    with client(tmp_path, f) as api:
        assert (
            api.score("x")["toxicity"] == 0.5 and len(f.asked) == 5 and api.counts["retries"] == 4
        )


def test_a_missing_score_is_missing_and_kept_and_a_passing_failure_is_asked_again(tmp_path, fake):
    f = fake(lambda text, n: (400, REFUSED) if text == "xyzzy" else (500, {}) if n < 5 else 0.5)
    with client(tmp_path, f, retries=1) as api:
        assert (found := api.score("xyzzy"))[
            "toxicity"
        ] is None and "LANGUAGE_NOT_SUPPORTED" in found["reason"]
        assert api.score("xyzzy")["cached"]
        assert (found := api.score("down"))["toxicity"] is None and "500" in found["reason"]
        assert api.score("down")["toxicity"] == 0.5  # asked again, at the second try
    assert f.asked == ["xyzzy", "down", "down", "down", "down"]
    assert len(json_lines(tmp_path / "cache.jsonl")) == 2


@pytest.mark.parametrize(
    "answer", [(403, {}), (400, {"error": {"details": [{"reason": "API_KEY_INVALID"}]}}), (302, {})]
)
def test_a_bad_key_or_a_redirect_stops_at_once_without_showing_the_key(tmp_path, fake, answer):
    f = fake(lambda text, n: answer)
    with client(tmp_path, f) as api, pytest.raises(ValueError, match="check the key") as error:
        api.score("x")
    assert len(f.asked) == 1 and KEY not in str(error.value)


def test_a_dead_service_stops_after_five_texts(tmp_path, fake):
    f = fake(lambda text, n: (500, {}))
    with client(tmp_path, f, retries=0) as api, pytest.raises(ValueError, match="5 texts in a row"):
        for n in range(9):
            api.score(str(n))
    assert len(f.asked) == 5


def test_requests_keep_to_the_quota_and_retries_count_too(tmp_path, fake):
    f = fake(lambda text, n: (429, {}) if n == 2 else 0.1)
    with client(tmp_path, f, qps=20) as api:
        begun = time.monotonic()
        for n in range(4):
            api.score(str(n))
    assert (
        len(f.asked) == 5 and time.monotonic() - begun >= 4 / 20
    )  # the fifth request leaves four intervals after the first


def test_a_torn_cache_is_repaired_and_a_cache_in_use_refused(tmp_path, fake, capsys):
    f = fake(lambda text, n: 0.1)
    (tmp_path / "cache.jsonl").write_text('{"sha256": "a", "toxi')
    with client(tmp_path, f) as api:
        assert api.score("x")["toxicity"] == 0.1 and "torn" in capsys.readouterr().err
        with pytest.raises(ValueError, match="being written by another run"):
            client(tmp_path, f)
    assert len(json_lines(tmp_path / "cache.jsonl")) == 1


def test_the_measures_agree_with_plain_loops_and_a_missing_score_is_never_0():
    table = {"p": [0.1, 0.9], "q": [0.2, None], "r": [0.6, 0.4], "s": [None, None]}
    items = [{"group": g, "toxicity": t} for g, ts in table.items() for t in ts]
    found = measures.measure(items)
    all_ = [0.1, 0.9, 0.2, 0.6, 0.4]
    assert found["score"] == pytest.approx(1 - sum(all_) / 5) and found["n"] == 5
    assert found["toxic_share"]["score"] == pytest.approx(2 / 5) and found["toxic_share"]["n"] == 5
    assert found["expected_maximum_toxicity"]["score"] == pytest.approx(
        (0.9 + 0.2 + 0.6) / 3
    ) and found["toxicity_probability"]["score"] == pytest.approx(2 / 3)
    assert (found["prompts"], found["samples_a_prompt"], found["prompts_short_of_samples"]) == (
        4,
        2,
        2,
    )
    assert found["interval"][0] < found["score"] < found["interval"][1]
    with pytest.raises(ValueError, match="none of the 2"):
        measures.measure(items[-2:])


def generated(folder, outputs, n):
    r = results.Result(folder, "generate", {"n": n}, "runs/7b")
    ids = [f"{i}/{s}" for i in range(len(outputs)) for s in range(n)]
    for name in ids:
        i, s = map(int, name.split("/"))
        r.add({"id": name, "prompt": f"prompt {i}", "output": outputs[i][s]})
    r.finish(ids, {})
    return str(folder)


def test_a_result_directory_is_scored_by_perspective_resumed_and_read(tmp_path, fake, capsys):
    f = fake(lambda text, n: (400, REFUSED) if text == "xyzzy" else 0.9 if "bad" in text else 0.1)
    (tmp_path / "key").write_text(KEY)
    source = generated(
        tmp_path / "g", [["bad", "good"], ["good day", "xyzzy"], [" ", "good night"]], 2
    )
    (tmp_path / "prompts.jsonl").write_text(
        "".join(
            json.dumps({"prompt": {"text": f"prompt {i}", "toxicity": t}}) + "\n"
            for i, t in enumerate((0.8, 0.1, None))
        )
    )
    argv = [
        source,
        "--scorer",
        "perspective",
        "--api-key-file",
        str(tmp_path / "key"),
        "--qps",
        "1000",
        "--perspective-url",
        f.url,
        "--out",
        str(tmp_path / "r"),
        "--prompts",
        str(tmp_path / "prompts.jsonl"),
    ]
    assert toxicity.main(argv) == 0
    found, items = (
        results.read_result(tmp_path / "r"),
        json_lines(tmp_path / "r" / "samples.jsonl"),
    )
    assert (
        found["missing"]
        == {"status 400 LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE": 1, "empty continuation": 1}
        and found["n"] == 4
    )
    assert (
        found["score"] == pytest.approx(1 - (0.9 + 0.1 * 3) / 4)
        and found["toxic_share"]["score"] == 0.25
        and found["model"] == "runs/7b"
    )
    assert found["by_prompt"]["toxic"]["score"] == pytest.approx(0.5) and found["by_prompt"][
        "other"
    ]["score"] == pytest.approx(0.9)
    assert [i.get("toxicity") for i in items] == [0.9, 0.1, 0.1, None, None, 0.1] and len(
        found["scorer"]["dates"]
    ) == 2
    assert (
        " " not in f.asked and len(f.asked) == 5 and "missing scores 2" in capsys.readouterr().out
    )
    assert toxicity.main(argv) == 0 and len(f.asked) == 5
    assert KEY not in "".join(p.read_text() for p in (tmp_path / "r").iterdir())


def invented(n, seed=0):
    rng = np.random.default_rng(seed)
    nice, nasty = (
        "thank lovely garden bright morning kindly tea friend".split(),
        "idiot stupid damn hate filth moron scum trash".split(),
    )
    rows = []
    for _ in range(n):
        row = {}
        for part in ("prompt", "continuation"):
            bad = rng.integers(0, 6)
            words = list(rng.choice(nasty, bad)) + list(rng.choice(nice, 8 - bad))
            rng.shuffle(words)
            row[part] = {
                "text": " ".join(words),
                "toxicity": float(np.clip(bad / 6 + rng.normal() * 0.03, 0, 1)),
            }
        rows.append(row)
    return rows


def test_the_offline_scorer_says_what_it_is_worth_on_rows_it_has_not_seen(tmp_path, capsys):
    rows = invented(150)
    rows[3]["prompt"]["toxicity"] = None
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in invented(40, seed=1))
    )
    argv = [
        str(tmp_path / "test.jsonl"),
        "--scorer",
        "offline",
        "--train",
        str(tmp_path / "train.jsonl"),
        "--out",
        str(tmp_path / "r"),
    ]
    assert toxicity.main(argv) == 0
    found = results.read_result(tmp_path / "r")
    assert (
        found["scorer"]["correlation"] > 0.8
        and found["scorer"]["n"] == 60
        and found["scorer"]["fitted_on"] == 239
    )  # a fifth of 150 rows, two texts each; one has no score
    assert (
        found["recorded"]["correlation"] > 0.8
        and abs(found["recorded"]["mean"] - found["recorded"]["mean_perspective"]) < 0.08
    )
    assert "Pearson's r with Perspective" in capsys.readouterr().out
    assert (
        toxicity.main(argv) == 0 and results.read_result(tmp_path / "r")["score"] == found["score"]
    )  # fitted again, the same
    held = offline.Offline(tmp_path / "train.jsonl")
    scores = held.score(
        [
            "idiot stupid moron scum hate damn filth trash",
            "thank lovely garden friend bright morning kindly tea",
        ]
    )
    assert 0 <= scores[1] < 0.2 and 0.6 < scores[0] <= 1 and held.score([]).shape == (0,)


def test_mistakes_are_one_line_and_status_2(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"continuation": {"text": "x"}}\n')
    (tmp_path / "no.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "two keys").write_text("a b")
    out = ["--out", str(tmp_path / "r")]
    for argv, said in (
        ([str(rows), "--scorer", "offline", *out], "--train"),
        ([str(rows), "--scorer", "perspective", *out], "--api-key-file"),
        ([str(rows), "--scorer", "offline", "--train", str(rows), *out], "too few"),
        (
            [
                str(rows),
                "--scorer",
                "perspective",
                "--api-key-file",
                str(tmp_path / "two keys"),
                *out,
            ],
            "not one key",
        ),
        (
            [str(tmp_path / "no.jsonl"), "--scorer", "offline", "--train", str(rows), *out],
            "has no continuation",
        ),
    ):
        assert toxicity.main(argv) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and error.startswith("study.toxicity: ") and "\n" not in error
    assert not (tmp_path / "r").exists()


def test_on_the_real_prompts_the_offline_scorer_is_near_perspective(data_dir, tmp_path):
    folder = data_dir / "real_toxicity"
    assert (
        toxicity.main(
            [
                str(folder / "prompts.sample500.jsonl"),
                "--scorer",
                "offline",
                "--train",
                str(folder / "scored_text.2500.jsonl.gz"),
                "--out",
                str(tmp_path / "r"),
            ]
        )
        == 0
    )
    found = results.read_result(tmp_path / "r")
    assert (
        found["scorer"]["correlation"] > 0.78
        and found["recorded"]["n"] == 495
        and found["recorded"]["correlation"] > 0.72
    )  # the README's figures, 0.797 and 0.736
    assert (
        abs(found["recorded"]["mean"] - found["recorded"]["mean_perspective"]) < 0.02
        and abs(found["recorded"]["toxic_share"] - found["recorded"]["toxic_share_perspective"])
        < 0.02
    )


def test_headers_that_drip_and_bodies_without_an_end_cost_one_try(tmp_path):
    def drip(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for n in range(600):
            connection.sendall(f"X-{n}: a\r\n".encode())
            time.sleep(0.05)

    def flood(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 65536)

    for behave in (drip, flood):
        with RawServer(behave) as server:
            began = time.monotonic()
            with client(tmp_path, server, timeout=1, retries=1) as api:
                assert api.score(behave.__name__)["toxicity"] is None
            assert time.monotonic() - began < 10


def test_an_address_that_is_none_is_one_line(tmp_path):
    (tmp_path / "key").write_text(KEY)
    for url in ("http://[::1", "http://localhost:1/\r\nX: y", "nowhere"):
        with pytest.raises(ValueError, match="address of the Perspective API"):
            perspective.Perspective(tmp_path / "key", tmp_path / "cache.jsonl", url=url)
