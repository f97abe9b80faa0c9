"""An OpenAI-compatible chat endpoint, asked once for each thing: retries, a log on disk, resuming, replay with no network.

    from study.endpoint import Endpoint
    with Endpoint("http://localhost:8000/v1", "out/log.jsonl") as teacher:
        for index, answer in teacher.ask_all([{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}]): ...

The log has one JSON line an answer, {"key", "request", "answer"}; the key is the sha256 of the request, so that the same request with the same log is never paid for twice,
whatever the URL. The API key is in no file: not in the log, and where an endpoint repeats it in a message it is blanked. Left out: streaming, tools, several choices of one
request (set "draw" instead: it tells equal requests apart and is not sent), embeddings.
"""

import collections
import datetime
import fcntl
import hashlib
import json
import os
import pathlib
import queue
import random
import sys
import threading
import time

LONGEST_WAIT = (
    120  # seconds before a request is tried again, at most, whatever the endpoint asks for
)
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
    """A request that this endpoint will not answer, however often it is asked; others may go through."""


def request_key(body):
    """sha256 hex of the canonical JSON of a request, its "draw" included."""
    return hashlib.sha256(
        json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    ).hexdigest()


def read_log(path, repair):
    """key -> answer of a log (the last one without an error), key -> the last failure of those without, whether a torn last line was there (cut off the file where `repair`)."""
    done, failed, torn, good = {}, {}, False, 0
    raw = pathlib.Path(path).read_bytes()
    lines = raw.split(b"\n")
    for number, line in enumerate(lines, 1):
        last = number == len(lines)
        try:
            row = json.loads(line) if not (last and not line) else None
            if row is not None and last:
                raise ValueError("no end of line")
            key, answer = (row["key"], row["answer"]) if row is not None else (None, None)
            error = answer["error"] if answer is not None else None
        except (ValueError, KeyError, TypeError):
            if not last:
                raise ValueError(
                    f"{path}, line {number} is not a line of this log: restore it, or name another log"
                ) from None
            torn = True
            break
        good += len(line) + 1
        if key is not None:
            (done if error is None else failed)[key] = answer
    if torn and repair:
        with open(path, "r+b") as f:
            f.truncate(good)
            f.flush()
            os.fsync(f.fileno())
    return done, {key: answer for key, answer in failed.items() if key not in done}, torn


def read_key(key_file):
    """The key in a file that holds nothing else; ValueError, one line, where it does not."""
    try:
        key = pathlib.Path(key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{key_file} cannot be read ({type(error).__name__}): --api-key-file takes a text file with the key alone"
        ) from None
    if not key or len(key.split()) != 1 or not key.isascii():
        raise ValueError(
            f"{key_file} is not one key: --api-key-file takes a text file with the key alone"
        )
    return key


class Endpoint:
    """Endpoint(url, log): an OpenAI-compatible endpoint with its log (made where there is none).

    key_file: a file with the key; without it the `openai` package's own variable; without that none is sent worth the name (local servers). concurrency: requests at once.
    timeout: seconds for one try. retries: further tries of a request, the first after about `backoff` seconds, then twice as long each time. replay: answers come from the log
    only, its failures too; no socket is opened. `counts` (Counter): asked, cached, failed, "retried: REASON"; torn and failed_before of the log. ValueError, one line, for what a user can mend.
    """

    def __init__(
        self,
        url,
        log,
        *,
        key_file=None,
        concurrency=8,
        timeout=120,
        retries=6,
        replay=False,
        backoff=1.0,
    ):
        self.url, self.log, self.replay = url, pathlib.Path(log), replay
        self.concurrency, self.timeout, self.retries, self.backoff = (
            concurrency,
            timeout,
            retries,
            backoff,
        )
        self.counts, self.file, self.lock, self.client, self.key = (
            collections.Counter(),
            None,
            threading.RLock(),
            None,
            None,
        )
        self.in_a_row, self.noted = 0, 0.0
        for name, value, least in (
            ("--concurrency", concurrency, 1),
            ("--timeout", timeout, 0.001),
            ("--retries", retries, 0),
        ):
            if value < least:
                raise ValueError(f"{name} {value} is out of range: use {least} or more")
        if replay:
            if not self.log.is_file():
                raise ValueError(f"{log} does not exist: --replay takes the log of an earlier run")
        else:
            if not str(url).startswith(("http://", "https://")):
                raise ValueError(
                    f"{url} is not the address of an endpoint: use http://HOST:PORT/v1 or https://…"
                )
            self._open(key_file)
        self.done, failed, torn = read_log(self.log, repair=not replay)
        if replay:
            self.done |= failed
        self.counts.update(
            {k: v for k, v in (("failed_before", len(failed)), ("torn", int(torn))) if v}
        )
        if torn:
            print(
                f"{self.log}: the torn last line of a run that was killed is {'passed over' if replay else 'cut off'}; that request counts as not asked",
                file=sys.stderr,
            )

    def _open(self, key_file):
        try:
            import openai
        except ImportError:
            raise ValueError(
                'asking an endpoint needs the package openai: python -m pip install "openai>=2,<4"'
            ) from None
        if key_file is not None:
            self.key = read_key(key_file)
        self.key = self.key or os.environ.get("OPENAI_API_KEY")
        self.openai = openai
        self.client = openai.OpenAI(
            api_key=self.key or "none", base_url=self.url, timeout=self.timeout, max_retries=0
        )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.log, "ab", buffering=0)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{self.log} is being written by another run: wait for it, or name another log"
            ) from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """End writing: whatever is still on its way is dropped, and the log is whole."""
        with self.lock:
            if self.file:
                self.file.close()
                self.file = None
        if self.client:
            self.client.close()

    def ask_all(self, bodies):
        """(index, answer) of each request, first those in the log, then the others as they are answered.

        bodies: dicts of what the endpoint takes ("model", "messages", "temperature", …) and perhaps "draw". answer: {"text": str or None, "finish": str or None, "prompt_tokens",
        "completion_tokens": int, "error": None or str, "cached": bool, "date": ISO}; it is on disk before it is yielded. An answer with an error is asked again by the next run.
        """
        places, waiting, answers, stop = (
            {},
            queue.SimpleQueue(),
            queue.SimpleQueue(),
            threading.Event(),
        )
        for index, body in enumerate(bodies):
            if body.get("stream") or body.get("n", 1) != 1:
                raise ValueError(
                    'a request has "stream" or several choices "n": one answer a request; tell equal requests apart by "draw"'
                )
            places.setdefault(request_key(body), (body, []))[1].append(index)
        unknown = [key for key in places if key not in self.done]
        if self.replay and unknown:
            raise ValueError(
                f"{self.log} has no answer to {len(unknown)} of the {len(places)} requests (the first is {request_short(places[unknown[0]][0])}): replay with the settings of the run that wrote it"
            )
        for key in [key for key in places if key in self.done]:
            for index in places[key][1]:
                self.counts["cached"] += 1
                yield index, self.done[key] | {"cached": True}
        for key in unknown:
            waiting.put(key)

        def work():
            while not stop.is_set():
                try:
                    key = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    answer = self._ask(places[key][0], stop)
                    if answer is not None and self._write(key, places[key][0], answer):
                        answers.put((key, answer))
                except BaseException as error:  # a bug, or what the user must mend: told by the one who reads the answers
                    answers.put((key, error))
                    return

        def next_answer():
            while True:  # a signal that comes between Python's last look and the wait would be seen only after it: the wait is short
                try:
                    return answers.get(timeout=0.5)
                except queue.Empty:
                    pass

        # daemons: at Ctrl-C nobody waits for answers that are on their way
        for _ in range(min(self.concurrency, len(unknown))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in unknown:
                key, answer = next_answer()
                if isinstance(answer, BaseException):
                    raise answer
                for index in places[key][1]:
                    yield index, answer | {"cached": False}
        finally:
            stop.set()

    def _ask(self, body, stop):
        """The answer to one request after as many tries as are allowed, or None where `stop` came first."""
        sent = {name: value for name, value in body.items() if name != "draw"}
        for tries in range(self.retries + 1):
            reason = None
            try:
                answer = self._try(sent)
                with self.lock:
                    self.in_a_row = 0
                return answer
            except Again as again:
                reason, wait = str(again), again.wait
            except Refused as refused:
                reason, wait = str(refused), None
                break
            finally:
                if stop.is_set():
                    return None
            if tries < self.retries:
                wait = min(
                    max(self.backoff * 2**tries * random.uniform(0.75, 1.25), wait or 0),
                    LONGEST_WAIT,
                )
                self._note(reason, wait)
                if stop.wait(wait):
                    return None
        else:
            with self.lock:
                self.in_a_row += 1
                if self.in_a_row >= 3 * self.concurrency:
                    raise ValueError(
                        f"{self.url} gave nothing but errors to {self.in_a_row} requests in a row (the last: {reason}): start again when it answers; what is answered is kept"
                    )
        return {
            "text": None,
            "finish": None,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "error": reason,
            "date": now(),
        }

    def _try(self, sent):
        """One request over the network -> answer; Again, Refused, or ValueError where no request can succeed."""
        more = {name: value for name, value in sent.items() if name not in ("model", "messages")}
        ends, parts, size = time.monotonic() + self.timeout, [], 0
        try:
            with self.client.chat.completions.with_streaming_response.create(
                model=sent["model"], messages=sent["messages"], extra_body=more
            ) as response:
                try:
                    for part in response.iter_bytes():
                        parts.append(part)
                        size += len(part)
                        if size > LARGEST or time.monotonic() > ends:
                            break
                except Exception as error:  # the transport's own classes, not wrapped by the package here: cut off, reset, silent
                    raise Again(f"an answer that breaks off ({type(error).__name__})") from None
        except self.openai.APITimeoutError:
            raise Again(f"no answer in {self.timeout:g} s") from None
        except self.openai.APIConnectionError as error:
            raise Again(f"no connection ({self._plain(error.__cause__ or error)})") from None
        except self.openai.APIStatusError as error:
            message = f"status {error.status_code}: {self._plain(error.message)}"
            if (
                error.status_code in HOPELESS
                or getattr(error, "code", None) == "insufficient_quota"
            ):
                raise ValueError(
                    f"{self.url} refuses ({message}): {HOPELESS.get(error.status_code, 'the account has nothing left')}"
                ) from None
            if error.status_code in AGAIN or error.status_code >= 500:
                raise Again(message, asked_wait(error.response.headers)) from None
            raise Refused(message) from None
        if time.monotonic() > ends:
            raise Again(f"no whole answer in {self.timeout:g} s")
        if size > LARGEST:
            raise Refused(f"an answer of more than {LARGEST >> 20} MiB")
        return self._answer(b"".join(parts))

    def _answer(self, raw):
        """The bytes of a 200 response -> answer; Again where they are not one."""
        try:
            found = json.loads(raw)
            choice = found["choices"][0]
            text, finish = choice["message"].get("content"), choice.get("finish_reason")
            if (
                not isinstance(finish, (str, type(None)))
                or not isinstance(text, (str, type(None)))
                or text is finish is None
            ):
                raise TypeError
        except (ValueError, RecursionError):
            raise Again(
                f"an answer that is not JSON ({self._plain(raw[:80].decode('utf-8', 'replace'))})"
            ) from None
        except (KeyError, IndexError, TypeError, AttributeError):
            raise Again(
                f"an answer of another form ({self._plain(raw[:80].decode('utf-8', 'replace'))})"
            ) from None
        usage = found.get("usage") if isinstance(found.get("usage"), dict) else {}
        count = lambda name: usage[name] if type(usage.get(name)) is int and usage[name] >= 0 else 0
        text = (
            text if text is None else self._blank(text.encode("utf-8", "replace").decode())
        )  # "\ud800" is JSON, but no text
        return {
            "text": text,
            "finish": finish,
            "prompt_tokens": count("prompt_tokens"),
            "completion_tokens": count("completion_tokens"),
            "error": None,
            "date": now(),
        }

    def _write(self, key, body, answer):
        """Put one line on disk; False where the log is closed."""
        line = (
            json.dumps({"key": key, "request": body, "answer": answer}, ensure_ascii=False).encode(
                "utf-8", "replace"
            )
            + b"\n"
        )
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

    def _note(self, reason, wait):
        """Count a retry; the first and then one in ten seconds is said."""
        with self.lock:
            self.counts["retried: " + reason.split(":")[0].split(" (")[0]] += 1
            if time.monotonic() - self.noted > 10:
                self.noted = time.monotonic()
                print(f"{self.url}: {reason}; again in {wait:.1f} s", file=sys.stderr)

    def _blank(self, text):
        return text.replace(self.key, "[key]") if self.key else text

    def _plain(self, text, width=160):
        """One line without control characters and without the key."""
        text = self._blank("".join(c if c.isprintable() else " " for c in str(text)))
        return text if len(text) <= width else text[: width - 1] + "…"


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def asked_wait(headers):
    """Seconds of Retry-After, or None (it may also be a date: then our own backoff will do)."""
    try:
        wait = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return wait if 0 <= wait < 1e9 else None


def request_short(body):
    messages = body.get("messages") or [{}]
    text = json.dumps(messages[-1].get("content"), ensure_ascii=True)
    return f"model {body.get('model')}, {text[:60]}"
