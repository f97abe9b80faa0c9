"""An OpenAI-compatible chat endpoint, asked once for each thing: retries, a log, resuming, replay.

    from study.endpoint import Endpoint
    with Endpoint("http://localhost:8000/v1", "out/log.jsonl") as teacher:
        for index, answer in teacher.ask_all([{"model": "m", "messages": [...]}]): ...

The log has one JSON line an answer, {"key", "request", "answer"}; the key is the sha256 of the
request, so that the same request with the same log is never paid for twice, whatever the URL. The
API key is in no file: not in the log, and where an endpoint repeats it in a message it is blanked.
Left out: streaming, tools, several choices of one request (set "draw" instead: it tells equal
requests apart and is not sent), embeddings.
"""

import collections
import datetime
import hashlib
import json
import os
import pathlib
import queue
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

from host import files, terminal

# Seconds before a request is tried again, at most, whatever the endpoint asks for.
LONGEST_WAIT = 120
LARGEST = 32 << 20  # bytes of one answer
AGAIN = (408, 409, 425, 429)  # and 5xx: the same request may succeed later
HOPELESS = {
    401: "check the key (--api-key-file, or the variable OPENAI_API_KEY)",
    403: "check what the key may do",
    404: "check the URL (it usually ends in /v1) and the model's name",
}


class Again(Exception):
    """A request to be tried again. `wait`: seconds that the endpoint asks for, or None."""

    def __init__(self, reason, wait=None):
        super().__init__(reason)
        self.wait = wait


class Refused(Exception):
    """A request that this endpoint will not answer, however often it is asked; others may pass."""


def request_key(body: dict) -> str:
    """sha256 hex of the canonical JSON of a request, its "draw" included."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_log(path: str | pathlib.Path, repair: bool) -> tuple:
    """(answers, failures, torn) of a log.

    answers: key -> its last answer without an error. failures: key -> the last error of the others.
    torn: whether the last line was cut off by a kill; it is cut off the file where `repair`.
    """
    answers, failed, torn, good = {}, {}, False, 0
    lines = pathlib.Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        last = number == len(lines)
        if last and not line:
            break
        try:
            row = json.loads(line)
            key, answer = row["key"], row["answer"]
            group = answers if answer["error"] is None else failed
            if last or not isinstance(key, str):
                raise ValueError("no end of line, or no key")
        except (ValueError, KeyError, TypeError, RecursionError):
            if not last:
                raise ValueError(
                    f"{path}, line {number} is not a line of this log: restore it, or name another "
                    "log"
                ) from None
            torn = True
            break
        good += len(line) + 1
        group[key] = answer
    if torn and repair:
        with open(path, "r+b") as f:
            f.truncate(good)
            os.fsync(f.fileno())
    return answers, {key: answer for key, answer in failed.items() if key not in answers}, torn


def read_key(key_file: str | pathlib.Path) -> str:
    """The key in a file that holds nothing else; ValueError, one line, where it does not."""
    try:
        key = pathlib.Path(key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{key_file} cannot be read ({type(error).__name__}): --api-key-file takes a text file "
            "with the key alone"
        ) from None
    if not key or len(key.split()) != 1 or not key.isascii():
        raise ValueError(
            f"{key_file} is not one key: --api-key-file takes a text file with the key alone"
        )
    return key


def check_url(url: str, flag: str = "the address of an endpoint") -> None:
    """ValueError, one line, for what is no http(s) address."""
    try:
        parts = urllib.parse.urlsplit(str(url))
        host = parts.hostname
        _ = parts.port
    except ValueError as error:  # a broken IPv6 host, a port that is no number
        raise ValueError(f"{url} is not {flag} ({error}): use http://HOST:PORT/v1") from None
    plain = str(url).isprintable() and " " not in str(url)
    if parts.scheme not in ("http", "https") or not host or not plain:
        raise ValueError(f"{url} is not {flag}: use http://HOST:PORT/v1 or https://…")


class Endpoint:
    """Endpoint(url, log): an OpenAI-compatible endpoint with its log (made where there is none).

    key_file: a file with the key; without it the `openai` package's own variable; without that none
    is sent worth the name (local servers). concurrency: requests at once. timeout: seconds for one
    try. retries: further tries of a request, the first after about `backoff` seconds, then twice as
    long each time. replay: answers come from the log only, its failures too; no socket is opened.
    `counts` (Counter): asked, cached, failed, "retried: REASON"; torn, failed_before of the log.
    ValueError, one line, for what a user can mend.
    """

    def __init__(
        self,
        url: str,
        log,
        *,
        key_file=None,
        concurrency: int = 8,
        timeout=120,
        retries: int = 6,
        replay: bool = False,
        backoff: float = 1.0,
    ):
        for name, value, least in (
            ("--concurrency", concurrency, 1),
            ("--timeout", timeout, 0.001),
            ("--retries", retries, 0),
        ):
            if not least <= value < float("inf"):
                raise ValueError(f"{name} {value} is out of range: use {least} or more")
        self.url, self.log, self.replay = url, pathlib.Path(log), replay
        self.concurrency, self.timeout = concurrency, timeout
        self.retries, self.backoff = retries, backoff
        self.counts, self.lock = collections.Counter(), threading.RLock()
        self.file = self.client = self.key = None
        self.failures_in_a_row, self.noted = 0, 0.0
        if not replay:
            check_url(url)
            self._open(key_file)
        elif not self.log.is_file():
            raise ValueError(f"{log} does not exist: --replay takes the log of an earlier run")
        self.done, failed, torn = read_log(self.log, repair=not replay)
        if replay:
            self.done |= failed
        before = (("failed_before", len(failed)), ("torn", int(torn)))
        self.counts.update({k: v for k, v in before if v})
        if torn:
            fate = "passed over" if replay else "cut off"
            terminal.say(
                f"{self.log}: the torn last line of a run that was killed is {fate}; that request "
                "counts as not asked"
            )

    def _open(self, key_file):
        try:
            import openai

            from study import deadline
        except ImportError:
            raise ValueError(
                'asking an endpoint needs the package openai: python -m pip install "openai>=2,<4"'
            ) from None
        key = read_key(key_file) if key_file is not None else os.environ.get("OPENAI_API_KEY")
        self.key, self.openai = key or None, openai
        self.deadline = deadline.Deadline(self.timeout, LARGEST)
        self.client = openai.OpenAI(
            api_key=self.key or "none",
            base_url=str(self.url),
            timeout=self.timeout,
            max_retries=0,
            http_client=self.deadline.on(openai.DefaultHttpxClient(timeout=self.timeout)),
        )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.log, "ab", buffering=0)
        if not files.lock(self.file):
            raise ValueError(
                f"{self.log} is being written by another run: wait for it, or name another log"
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End writing: whatever is still on its way is dropped, and the log is whole."""
        with self.lock:
            if self.file:
                self.file.close()
                self.file = None
        if self.client:
            self.client.close()

    # --- asking ---

    def ask_all(
        self, bodies: list[dict], readable: Callable[[dict], object] | None = None
    ) -> Iterator[tuple[int, dict]]:
        """(index, answer) of each request, first those in the log, then the others as they come.

        bodies: dicts of what the endpoint takes ("model", "messages", "temperature", …) and perhaps
        "draw". answer: {"text": str or None, "finish": str or None, "prompt_tokens",
        "completion_tokens": int, "error": None or str, "cached": bool, "date": ISO}, and "refused"
        where further tries had no point; it is on disk before it is yielded. An answer with an
        error is asked again by the next run, and so is one that readable(answer) says cannot be
        used.
        """
        places = distinct(bodies)
        known = {key for key in places if key in self.done}
        if readable and not self.replay:
            known = {key for key in known if readable(self.done[key])}
        unknown = [key for key in places if key not in known]
        if self.replay and unknown:
            raise ValueError(
                f"{self.log} has no answer to {len(unknown)} of the {len(places)} requests (the "
                f"first is {request_short(places[unknown[0]][0])}): replay with the settings of "
                "the run that wrote it"
            )
        for key in [key for key in places if key in known]:
            for index in places[key][1]:
                self.counts["cached"] += 1
                yield index, self.done[key] | {"cached": True}
        yield from self._ask_new({key: places[key] for key in unknown})

    def _ask_new(self, places):
        waiting, answers, stop = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
        for key, (body, _) in places.items():
            waiting.put((key, body))
        # daemons: at Ctrl-C nobody waits for answers that are on their way
        for _ in range(min(self.concurrency, len(places))):
            threading.Thread(target=self._work, args=(waiting, answers, stop), daemon=True).start()
        try:
            for _ in places:
                key, answer = next_of(answers)
                if isinstance(answer, BaseException):
                    raise answer
                for index in places[key][1]:
                    yield index, answer | {"cached": False}
        finally:
            stop.set()

    def _work(self, waiting, answers, stop):
        """One thread: asks what is waiting until nothing is, or `stop` comes."""
        while not stop.is_set():
            try:
                key, body = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answer = self._ask(body, stop)
                if answer is not None and self._write(key, body, answer):
                    answers.put((key, answer))
            # a bug, or what the user must mend: told by the one who reads the answers
            except BaseException as error:
                answers.put((key, error))
                return

    def _ask(self, body, stop):
        """The answer to one request after as many tries as are allowed; None where `stop` came."""
        sent = {name: value for name, value in body.items() if name != "draw"}
        for tries in range(self.retries + 1):
            answer, reason, wait = None, None, None
            try:
                answer = self._try(sent)
                with self.lock:
                    self.failures_in_a_row = 0
            except Refused as refused:
                answer = failure(str(refused)) | {"refused": True}
            except Again as again:
                reason, wait = str(again), again.wait
            if stop.is_set():
                return None
            if answer is not None:
                return answer
            if tries < self.retries:
                own = self.backoff * 2**tries * random.uniform(0.75, 1.25)
                if self._wait(reason, min(max(own, wait or 0), LONGEST_WAIT), stop):
                    return None
        with self.lock:
            self.failures_in_a_row += 1
            if self.failures_in_a_row >= 3 * self.concurrency:
                raise ValueError(
                    f"{self.url} gave nothing but errors to {self.failures_in_a_row} requests in a "
                    f"row (the last: {reason}): start again when it answers; what is answered is "
                    "kept"
                )
        return failure(reason)

    def _try(self, sent):
        """One request over the network -> answer.

        Again, Refused, or ValueError where no request can succeed.
        """
        more = {name: value for name, value in sent.items() if name not in ("model", "messages")}
        parts, size = [], 0
        try:
            with (
                self.deadline.started(),
                self.client.chat.completions.with_streaming_response.create(
                    model=sent["model"], messages=sent["messages"], extra_body=more
                ) as response,
            ):
                try:
                    for part in response.iter_bytes():
                        parts.append(part)
                        size += len(part)
                        if size > LARGEST or self.deadline.over():
                            break
                # the transport's own classes, not wrapped by the package here
                except Exception as error:
                    if not self.deadline.over():
                        raise Again(f"an answer that breaks off ({type(error).__name__})") from None
        except self.openai.APITimeoutError:
            raise Again(f"no answer in {self.timeout:g} s") from None
        except self.openai.APIConnectionError as error:
            raise Again(f"no connection ({self._plain(error.__cause__ or error)})") from None
        except self.openai.APIStatusError as error:
            raise self._refusal(error) from None
        except Exception as error:  # the transport's, while the body of an error status is read
            if not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            raise Again(f"an answer that breaks off ({type(error).__name__})") from None
        if self.deadline.over():
            raise Again(f"no whole answer in {self.timeout:g} s")
        if size > LARGEST:
            raise Refused(f"an answer of more than {LARGEST >> 20} MiB")
        return self._answer(b"".join(parts))

    def _refusal(self, error):
        """What an error status means: an exception to raise."""
        message = f"status {error.status_code}: {self._plain(error.message)}"
        spent = getattr(error, "code", None) == "insufficient_quota"
        if error.status_code in HOPELESS or spent:
            remedy = HOPELESS.get(error.status_code, "the account has nothing left")
            return ValueError(f"{self.url} refuses ({message}): {remedy}")
        if error.status_code in AGAIN or error.status_code >= 500:
            return Again(message, asked_wait(error.response.headers))
        return Refused(message)

    def _answer(self, raw):
        """The bytes of a 200 response -> answer; Again where they are not one."""
        try:
            value = json.loads(raw)
            choice = value["choices"][0]
            text, finish = choice["message"].get("content"), choice.get("finish_reason")
            strings = all(isinstance(x, (str, type(None))) for x in (text, finish))
            if not strings or text is finish is None:
                raise TypeError
        except (ValueError, RecursionError):
            shown = self._plain(raw[:80].decode("utf-8", "replace"))
            raise Again(f"an answer that is not JSON ({shown})") from None
        except (KeyError, IndexError, TypeError, AttributeError):
            shown = self._plain(raw[:80].decode("utf-8", "replace"))
            raise Again(f"an answer of another form ({shown})") from None
        usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
        if text is not None:  # "\ud800" is JSON, but no text
            text = self._blank(text.encode("utf-8", "replace").decode())
        return {
            "text": text,
            "finish": finish,
            "prompt_tokens": tokens_of(usage, "prompt_tokens"),
            "completion_tokens": tokens_of(usage, "completion_tokens"),
            "error": None,
            "date": now(),
        }

    def _write(self, key, body, answer):
        """Put one line on disk; False where the log is closed."""
        row = {"key": key, "request": body, "answer": answer}
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self.lock:
            if not self.file:
                return False
            written = 0
            while written < len(line):
                written += self.file.write(line[written:])
            os.fsync(self.file.fileno())
            self.counts["asked"] += 1
            if answer["error"] is None:
                self.done[key] = answer
            else:
                self.counts["failed"] += 1
        return True

    def _wait(self, reason, seconds, stop):
        """Count a retry and wait for it -> whether `stop` came.

        One retry in ten seconds is said; of a long wait, every ten seconds how long it still is.
        """
        with self.lock:
            self.counts["retried: " + reason.split(":")[0].split(" (")[0]] += 1
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            with self.lock:
                if time.monotonic() - self.noted > 10:
                    self.noted = time.monotonic()
                    terminal.say(f"{self.url}: {reason}; again in {left:.1f} s")
            if stop.wait(min(left, 10)):
                return True
        return False

    def _blank(self, text):
        return text.replace(self.key, "[key]") if self.key else text

    def _plain(self, text, width=160):
        """One line without control characters and without the key."""
        text = self._blank(terminal.printable(text, lines=False))
        return text if len(text) <= width else text[: width - 1] + "…"


# --- small parts ---


def distinct(bodies: list[dict]) -> dict:
    """{key: (body, [indices])} of requests, in their order; ValueError for streams and choices."""
    places = {}
    for index, body in enumerate(bodies):
        if body.get("stream") or body.get("n", 1) != 1:
            raise ValueError(
                'a request has "stream" or several choices "n": one answer a request; tell equal '
                'requests apart by "draw"'
            )
        places.setdefault(request_key(body), (body, []))[1].append(index)
    return places


def next_of(answers: queue.SimpleQueue) -> tuple:
    """The next of a queue. The wait is short, for a signal is only seen between two of them."""
    while True:
        try:
            return answers.get(timeout=0.5)
        except queue.Empty:
            pass


def failure(reason: str) -> dict:
    """The answer that says why there is none."""
    return {
        "text": None,
        "finish": None,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "error": reason,
        "date": now(),
    }


def tokens_of(usage: dict, name: str) -> int:
    return usage[name] if type(usage.get(name)) is int and usage[name] >= 0 else 0


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def asked_wait(headers: Any) -> float | None:
    """Seconds of Retry-After, or None (it may also be a date: then our own backoff will do)."""
    try:
        wait = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return wait if 0 <= wait < 1e9 else None


def request_short(body: dict) -> str:
    messages = body.get("messages") or [{}]
    text = json.dumps(messages[-1].get("content"), ensure_ascii=True)
    return f"model {body.get('model')}, {text[:60]}"
