"""The Perspective API's toxicity of texts: within the quota, every score kept with its date.

    from study.toxicity.perspective import Perspective
    with Perspective("key.txt", "scores.jsonl", qps=1) as api: api.score("a text")

A score is {"toxicity": 0.03, "date": "2026-…"}, or {"toxicity": None, "reason": …}: a missing score
is missing and never 0. The cache is JSON lines {"sha256" of the text, "date", "toxicity",
"reason"}, appended and synced before a score is given; what stands there is not asked again,
missing scores that asking again would not mend (no language, empty, too long) among them. The key
goes into a header and into no file and no message. Left out: attributes other than TOXICITY;
requests side by side.
"""

import datetime
import hashlib
import http.client
import json
import os
import pathlib
import time
import urllib.error
import urllib.request
from typing import Any

from host import files, terminal
from study import endpoint
from study.deadline import within
from study.toxicity import URL

LONGEST_WAIT = 120  # seconds
LARGEST = 1 << 20  # bytes of an answer
# Texts in a row that could not be scored at all: the service is down, or the quota is spent.
FAILURES = 5


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None  # urllib would send the key on to wherever it is told


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Perspective:
    """Perspective(key_file, cache): the API, with its cache.

    qps: requests a second at most. retries: further tries, the first after `backoff` seconds, then
    twice as long. timeout: seconds of one try. ValueError, one line, for what a user can mend.
    """

    def __init__(
        self,
        key_file,
        cache,
        *,
        qps: float = 1.0,
        retries: int = 6,
        backoff: float = 1.0,
        timeout=30,
        url: str = URL,
    ):
        self.key = endpoint.read_key(key_file)
        endpoint.check_url(url, "the address of the Perspective API")
        if not 0 < qps < float("inf"):
            raise ValueError(
                f"--qps {qps} is out of range: use more than 0 (Perspective gives 1 unless more is "
                "asked for)"
            )
        self.url, self.every, self.retries = url, 1 / qps, retries
        self.backoff, self.timeout = backoff, timeout
        self.opener, self.next = urllib.request.build_opener(_NoRedirect), 0.0
        self.failures_in_a_row = 0
        self.counts = {"asked": 0, "cached": 0, "retries": 0}
        cache = pathlib.Path(cache)
        cache.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(cache, "a", encoding="utf-8")
        if not files.lock(self.file):
            raise ValueError(
                f"{cache} is being written by another run: wait for it, or name another --cache"
            )
        # a torn last line is cut off, and said: that text is asked again
        self.known = {row["sha256"]: row for row in files.json_lines(cache)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def score(self, text: str) -> dict:
        """{"toxicity": 0 to 1 or None, "date", "reason" (why there is none, or None), "cached"}."""
        name = key_of(text)
        if name in self.known:
            self.counts["cached"] += 1
            return self.known[name] | {"cached": True}
        toxicity, reason, lasting = self._ask(text)
        row = {
            "sha256": name,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "toxicity": toxicity,
            "reason": reason,
        }
        if lasting:
            self.file.write(files.dumps(row) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())
            self.known[name] = row
        return row | {"cached": False}

    def _ask(self, text):
        """(toxicity or None, why None, whether asking again would change nothing)."""
        reason = None
        for tries in range(self.retries + 1):
            time.sleep(max(0.0, self.next - time.monotonic()))
            self.next = time.monotonic() + self.every
            self.counts["asked"] += 1
            toxicity, reason, lasting, wait = self._try(text)
            if toxicity is not None or lasting:
                self.failures_in_a_row = 0
                return toxicity, reason, True
            if tries < self.retries:
                self.counts["retries"] += 1
                wait = min(max(self.backoff * 2**tries, wait or 0), LONGEST_WAIT)
                if wait > 10:
                    terminal.say(f"Perspective: {reason}; again in {wait:.0f} s")
                time.sleep(wait)
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= FAILURES:
            raise ValueError(
                f"Perspective gave nothing but errors for {self.failures_in_a_row} texts in a row "
                f"(the last: {reason}): start again later, what is scored is kept; a lower --qps "
                "keeps within the quota"
            )
        return None, reason, False

    def _try(self, text):
        """(toxicity or None, why None, whether that lasts, seconds to wait or None) of one try."""
        body = {
            "comment": {"text": text},
            "requestedAttributes": {"TOXICITY": {}},
            "languages": ["en"],
            "doNotStore": True,
        }
        headers = {"Content-Type": "application/json", "X-Goog-Api-Key": self.key}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            status, headers, raw = within(self.timeout, lambda: self._fetch(request))
        # URLError and time-outs among them
        except (OSError, http.client.HTTPException) as error:
            kind = type(getattr(error, "reason", error)).__name__
            return None, f"no answer ({kind})", False, None
        if status != 200:
            return None, *refusal(status, headers, raw)
        try:
            value = json.loads(raw)["attributeScores"]["TOXICITY"]["summaryScore"]["value"]
        except (ValueError, KeyError, TypeError, RecursionError):
            value = None
        if isinstance(value, (int, float)) and 0 <= value <= 1:
            return float(value), None, True, None
        return None, "an answer of another form", False, None

    def _fetch(self, request):
        """(status, headers, the first LARGEST bytes of the body)."""
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                return 200, response.headers, response.read(LARGEST)
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read(1 << 16)


def refusal(status: int, headers: Any, raw: bytes) -> tuple:
    """(reason, whether it lasts, seconds to wait or None) of an error status.

    ValueError where no request can succeed.
    """
    try:
        value = json.loads(raw)["error"]
        details = [d for d in value.get("details", []) if isinstance(d, dict)]
        kinds = [d.get("errorType") or d.get("reason") for d in details]
        kind = next((k for k in kinds if isinstance(k, str)), str(value.get("status", "")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        kind = ""  # the status alone has to do
    kind = "".join(c for c in kind if c.isalnum() or c == "_")[:60]
    if status in (401, 403, 404) or "KEY" in kind or 300 <= status < 400:
        raise ValueError(
            f"Perspective refuses (status {status} {kind}): check the key and that the API is "
            "enabled for its project"
        )
    again = status in (408, 429) or status >= 500
    return f"status {status} {kind}".strip(), not again, endpoint.asked_wait(headers)
