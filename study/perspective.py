"""The Perspective API's toxicity of texts: within the quota, every score kept with its date, a missing score missing and never 0.

    from study.perspective import Perspective
    with Perspective("key.txt", "scores.jsonl", qps=1) as api: api.score("a text")      # {"toxicity": 0.03, "date": "2026-…"} or {"toxicity": None, "reason": …}

The cache is JSON lines {"sha256" of the text, "date", "toxicity", "reason"}, appended and synced before a score is given; what stands there is not asked again,
missing scores that asking again would not mend (no language, empty, too long) among them. The key goes into a header and into no file and no message. Left out:
attributes other than TOXICITY; requests side by side.
"""

import datetime
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import sys
import time
import urllib.error
import urllib.request

from study import endpoint
from tasks import results

URL = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
LONGEST_WAIT = 120  # seconds
FAILURES = (
    5  # texts in a row that could not be scored at all: the service is down, or the quota is spent
)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # urllib would send the key on to wherever it is told


def key_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


class Perspective:
    """Perspective(key_file, cache): qps: requests a second at most; retries: further tries, the first after `backoff` seconds, then twice as long. ValueError,
    one line, for what a user can mend.
    """

    def __init__(self, key_file, cache, *, qps=1.0, retries=6, backoff=1.0, timeout=30, url=URL):
        self.key = endpoint.read_key(key_file)
        if not qps > 0:
            raise ValueError(
                f"--qps {qps} is out of range: use more than 0 (Perspective gives 1 unless more is asked for)"
            )
        self.url, self.every, self.retries, self.backoff, self.timeout = (
            url,
            1 / qps,
            retries,
            backoff,
            timeout,
        )
        self.opener, self.next, self.failed = urllib.request.build_opener(_NoRedirect), 0.0, 0
        self.counts = {"asked": 0, "cached": 0, "retries": 0}
        cache = pathlib.Path(cache)
        cache.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(cache, "a", encoding="utf-8")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{cache} is being written by another run: wait for it, or name another --cache"
            ) from None
        size = cache.stat().st_size
        self.known = {row["sha256"]: row for row in results.read_lines(cache)}
        if cache.stat().st_size < size:
            print(
                f"{cache}: the torn last line of a run that was killed is cut off; that text is asked again",
                file=sys.stderr,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def score(self, text):
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
            self.file.write(results.dumps(row) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())
            self.known[name] = row
        return row | {"cached": False}

    def _ask(self, text):
        """(toxicity or None, why None, whether asking again would change nothing)."""
        body = json.dumps(
            {
                "comment": {"text": text},
                "requestedAttributes": {"TOXICITY": {}},
                "languages": ["en"],
                "doNotStore": True,
            }
        ).encode()
        reason = None
        for tries in range(self.retries + 1):
            time.sleep(max(0.0, self.next - time.monotonic()))
            self.next = time.monotonic() + self.every
            self.counts["asked"] += 1
            wait = None
            try:
                request = urllib.request.Request(
                    self.url, body, {"Content-Type": "application/json", "X-Goog-Api-Key": self.key}
                )
                with self.opener.open(request, timeout=self.timeout) as response:
                    value = json.loads(response.read(1 << 20))["attributeScores"]["TOXICITY"][
                        "summaryScore"
                    ]["value"]
                if isinstance(value, (int, float)) and 0 <= value <= 1:
                    self.failed = 0
                    return float(value), None, True
                reason = "an answer of another form"
            except urllib.error.HTTPError as error:
                reason, lasting, wait = self._refusal(error)
                if lasting:
                    self.failed = 0
                    return None, reason, True
            except (
                OSError,
                http.client.HTTPException,
            ) as error:  # URLError and time-outs among them
                reason = f"no answer ({type(getattr(error, 'reason', error)).__name__})"
            except (ValueError, KeyError, TypeError):
                reason = "an answer of another form"
            if tries < self.retries:
                self.counts["retries"] += 1
                time.sleep(min(max(self.backoff * 2**tries, wait or 0), LONGEST_WAIT))
        self.failed += 1
        if self.failed >= FAILURES:
            raise ValueError(
                f"Perspective gave nothing but errors for {self.failed} texts in a row (the last: {reason}): start again later, what is scored is kept; a lower --qps keeps within the quota"
            )
        return None, reason, False

    def _refusal(self, error):
        """(reason, whether it lasts, seconds to wait or None) of an error status; ValueError where no request can succeed."""
        raw = error.read(1 << 16)
        try:
            found = json.loads(raw)["error"]
            kinds = [
                d.get("errorType") or d.get("reason")
                for d in found.get("details", [])
                if isinstance(d, dict)
            ]
            kind = next((k for k in kinds if isinstance(k, str)), str(found.get("status", "")))
        except (ValueError, KeyError, TypeError, AttributeError):
            kind = ""
        kind = "".join(c for c in kind if c.isalnum() or c == "_")[:60]
        if error.code in (401, 403, 404) or "KEY" in kind or 300 <= error.code < 400:
            raise ValueError(
                f"Perspective refuses (status {error.code} {kind}): check the key and that the API is enabled for its project"
            )
        try:
            wait = float(error.headers.get("Retry-After", ""))
        except ValueError:
            wait = None
        again = error.code in (408, 429) or error.code >= 500
        return f"status {error.code} {kind}".strip(), not again, wait
