"""What `python -m serve` costs beside the model's own arithmetic, and what it bears.

    python bench/serve.py throughput --model SMOLLM2.gguf     # beside eval.py's decode loop
    python bench/serve.py theirs --model SMOLLM2.gguf         # beside transformers' generate
    python bench/serve.py first --model SMOLLM2.gguf          # seconds to the first token
    python bench/serve.py memory --model stories260K.bin      # 2,000 requests
    python bench/serve.py hangups --model stories260K.bin     # 200 clients, half of them leave

Each starts a server of its own and ends it. Ratios are of one run, in turns. `theirs`
needs requirements-compare.txt; --url measures a server that runs already (`transformers serve`).
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SUBJECTS = "rivers bread clocks bees glass music bridges salt maps winter trains ink tea wool ships"
KINDS = ("Explain to a child how {} came to be.", "Write a short story about {}.", "List ten facts"
         " about {}, with a sentence for each.")  # fmt: skip


def questions(count: int) -> list[str]:
    """Different questions of a few words, which are answered at length."""
    subjects = SUBJECTS.split()
    pairs = [(subject, kind) for kind in KINDS for subject in subjects]
    return [kind.format(f"{s} and {k + 1} friends") for k, (s, kind) in enumerate(pairs)][:count]


# --- a server, and what is asked of it ---


class Client:
    """A server's address and its model's name."""

    def __init__(self, url: str, model: str | None = None, pid: int | None = None):
        place = urllib.parse.urlsplit(url)
        self.host, self.port, self.pid = place.hostname, place.port, pid
        self.model = model or self.get("/v1/models")["data"][0]["id"]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=600)

    def get(self, path: str) -> dict:
        connection = self.connect()
        with contextlib.closing(connection):
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())

    def send(self, path: str, body: dict) -> http.client.HTTPConnection:
        """A connection on which a request was sent."""
        connection = self.connect()
        raw = json.dumps({"model": self.model, **body})
        connection.request("POST", path, raw, {"Content-Type": "application/json"})
        return connection

    def post(self, path: str, body: dict) -> dict:
        connection = self.send(path, body)
        with contextlib.closing(connection):
            response = connection.getresponse()
            said = response.read()
            assert response.status == 200, said
            return json.loads(said)

    def chat(self, text: str, tokens: int, **more: object) -> dict:
        messages = [{"role": "user", "content": text}]
        return self.post(
            "/v1/chat/completions",
            {"messages": messages, "max_tokens": tokens, "temperature": 0, **more},
        )

    def first(self, ids: list[int]) -> float:
        """Seconds until the first token of a stream is there."""
        body = {"prompt": ids, "max_tokens": 4, "temperature": 0, "stream": True}
        started = time.perf_counter()
        connection = self.send("/v1/completions", body)
        with contextlib.closing(connection):
            response = connection.getresponse()
            while not (line := response.readline()).startswith(b"data:"):
                assert line, "the stream ended without a token"
            seconds = time.perf_counter() - started
            response.read()
            return seconds

    def rss_mib(self) -> float:
        """The server's memory now."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def idle(self, seconds: float) -> bool:
        """Whether no sample is left in the server within so many seconds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            connection = self.connect()
            with contextlib.closing(connection):
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
            if re.search(r"^mynah_running 0$", text, re.M) and re.search(
                r"^mynah_waiting 0$", text, re.M
            ):
                return True
            time.sleep(0.05)
        return False


@contextlib.contextmanager
def serving(model: str, batch: int, *flags: str) -> Iterator[Client]:
    """A server of its own, ended when the block is left."""
    command = [sys.executable, "-m", "serve", "--model", model, "--name", "model", "--port", "0"]
    command += ["--batch", str(batch), *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.match(r"serving (http://\S+)/ ", line):
                break
        else:
            raise SystemExit("the server did not start:\n" + "".join(said))
        # its log is read on, or it would wait for us
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Client(found[1], "model", process.pid)
    finally:
        process.terminate()
        process.wait(60)


def at_once(jobs: list[Callable[[], object]]) -> tuple[list, float]:
    """(results, seconds) of jobs that all start together."""
    results: list = [None] * len(jobs)

    def run(k):
        results[k] = jobs[k]()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(jobs))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, time.perf_counter() - started


def ask_all(client: Client, clients: int, tokens: int) -> float:
    """Tokens a second of so many clients at once, each with another question."""
    jobs = [lambda q=q: client.chat(q, tokens) for q in questions(clients)]
    answers, seconds = at_once(jobs)
    return sum(a["usage"]["completion_tokens"] for a in answers) / seconds


# --- the measurements ---


def throughput(args: argparse.Namespace) -> None:
    """The server's tokens a second beside those of the loop of `eval.py generate`."""
    from decoding.opened import open_model
    from decoding.records import Sampling

    opened = open_model(args.model, batch=args.batch)
    asked = [[{"from": "human", "value": q}] for q in questions(args.clients)]
    prompts, how = [opened.chat_ids(turns) for turns in asked], Sampling(max_new=args.tokens)

    def ours():
        started = time.perf_counter()
        new = sum(len(out.ids) for out in opened.generate(prompts, how))
        return new / (time.perf_counter() - started)

    with serving(args.model, args.batch) as client:
        ask_all(client, args.clients, args.tokens)
        ours()  # both have compiled
        rates = [(ours(), ask_all(client, args.clients, args.tokens)) for _ in range(args.rounds)]
    report(f"{args.clients} clients, {args.tokens} tokens each", "eval.py generate", "serve", rates)


def theirs(args: argparse.Namespace) -> None:
    """The server's tokens a second beside transformers' generate, one by one and as one batch."""
    url = args.url
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        client = stack.enter_context(serving(args.model, args.batch))
        ask_all(client, args.clients, args.tokens)
        if url:
            other = Client(url, args.url_model)
            ask_all(other, 2, 4)
            runs = {"transformers serve": lambda: ask_all(other, args.clients, args.tokens)}
        else:
            runs = plain_loops(args, folder)
        for name, run in runs.items():
            rates = [
                (run(), ask_all(client, args.clients, args.tokens)) for _ in range(args.rounds)
            ]
            report(f"{args.clients} clients, {args.tokens} tokens each", name, "serve", rates)


def plain_loops(args: argparse.Namespace, folder: str) -> dict[str, Callable[[], float]]:
    """name -> tokens a second of transformers on the same weights, in float32."""
    import torch
    import transformers

    convert = [sys.executable, "-m", "checkpoint", "convert", args.model, folder, "--to", "hf"]
    subprocess.run(convert, cwd=ROOT, check=True, capture_output=True)
    tok = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    tok.pad_token = tok.pad_token or tok.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def generate(texts):
        messages = [[{"role": "user", "content": t}] for t in texts]
        inputs = tok.apply_chat_template(
            messages, add_generation_prompt=True, padding=True, return_tensors="pt",
            return_dict=True,
        )  # fmt: skip
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=args.tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        ends = torch.tensor([tok.eos_token_id, tok.pad_token_id])
        return int((~torch.isin(new, ends)).sum())

    def rate(batches):
        started = time.perf_counter()
        new = sum(map(generate, batches))
        return new / (time.perf_counter() - started)

    asked = questions(args.clients)
    return {
        "transformers, one by one": lambda: rate([[q] for q in asked[: args.one_by_one]]),
        "transformers, one padded batch": lambda: rate([asked]),
    }


def first(args: argparse.Namespace) -> None:
    """Seconds to the first token of 100 tokens, idle and while others are answered."""
    with serving(args.model, args.batch) as client:
        prompts = [[(7 * k + 13 * i) % 200 + 40 for i in range(100)] for k in range(64)]
        ask_all(client, args.clients // 2, 16)  # compiled
        for ids in prompts[:3]:
            client.first(ids)
        idle = [client.first(ids) for ids in prompts[4:14]]
        stop, made = threading.Event(), [0]

        def keep_on(text):
            while not stop.is_set():
                made[0] += client.chat(text, args.tokens)["usage"]["completion_tokens"]

        busy = [threading.Thread(target=keep_on, args=(q,)) for q in questions(args.clients // 2)]
        for thread in busy:
            thread.start()
        time.sleep(3)
        loaded = [client.first(ids) for ids in prompts[14:34]]
        stop.set()
        for thread in busy:
            thread.join()
    a, b = statistics.median(idle), statistics.median(loaded)
    print(
        f"first token of 100: idle {a:.3f} s (worst {max(idle):.3f}), beside {args.clients // 2} "
        f"others {b:.3f} s (worst {max(loaded):.3f}): {b / a:.2f} times"
    )


def memory(args: argparse.Namespace) -> None:
    """The server's memory over many requests of all lengths."""
    with serving(args.model, args.batch) as client:
        marks = {}

        def some(count, start):
            def ask(k):
                body = {"prompt": [3 + (k * j) % 200 for j in range(1 + k % 60)]}
                body |= {
                    "max_tokens": 1 + k % 40,
                    "n": 1 + k % 2,
                    "stop": ["zq"],
                    "echo": k % 5 == 0,
                }
                client.post("/v1/completions", body | {"logprobs": 1 if k % 3 else None})

            for at in range(start, start + count, args.clients):
                at_once([lambda k=k: ask(k) for k in range(at, at + args.clients)])

        done = 0
        for mark in (args.requests // 10, args.requests // 2, args.requests):
            some(mark - done, done)
            done = mark
            marks[mark] = client.rss_mib()
    print("; ".join(f"after {k:,} requests {v:,.0f} MiB" for k, v in marks.items()))


def hangups(args: argparse.Namespace) -> None:
    """Many clients at once of which every other leaves."""
    with serving(args.model, args.batch) as client:
        client.post("/v1/completions", {"prompt": "Once", "max_tokens": 4})
        full, body = [0], {"prompt": "Once upon", "max_tokens": 100, "temperature": 0}
        expected = client.post("/v1/completions", body)["choices"][0]["text"]

        def one(k):
            connection = client.send("/v1/completions", body | {"stream": k % 4 < 2})
            if k % 2:
                time.sleep(0.02 * (k % 7))
                connection.close()
                return "left"
            with contextlib.closing(connection):
                said = connection.getresponse().read().decode()
            if k % 4:
                return json.loads(said)["choices"][0]["text"] == expected
            chunks = [json.loads(e[6:]) for e in said.split("\n\n") if e.startswith("data: {")]
            return "".join(c["choices"][0]["text"] for c in chunks) == expected

        results, seconds = at_once([lambda k=k: one(k) for k in range(args.many)])
        clean = client.idle(10)
        full = sum(r is True for r in results)
        after = client.post("/v1/completions", body)["choices"][0]["text"] == expected
    print(
        f"{args.many} clients in {seconds:.1f} s: {full} stayed and got the whole answer, "
        f"{sum(r is False for r in results)} a wrong one, {results.count('left')} hung up; slots "
        f"{'all free' if clean else 'LEAKED'}, the next answer {'right' if after else 'WRONG'}"
    )


def report(what: str, base: str, name: str, rates: list[tuple[float, float]]) -> None:
    """One line: medians of both, and the median of the rounds' ratios."""
    a, b = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(y / x for x, y in rates)
    print(
        f"{what}: {base} {a:.1f} tokens/s, {name} {b:.1f} tokens/s, ratio {ratio:.2f}", flush=True
    )


COMMANDS = {f.__name__: f for f in (throughput, theirs, first, memory, hangups)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("what", choices=COMMANDS)
    p.add_argument("--model", required=True, metavar="PATH")
    p.add_argument("--batch", type=int, default=32, metavar="N")
    p.add_argument("--clients", type=int, default=32, metavar="N")
    p.add_argument("--tokens", type=int, default=128, metavar="N")
    p.add_argument("--rounds", type=int, default=3, metavar="N")
    p.add_argument("--requests", type=int, default=2000, metavar="N", help="of memory")
    p.add_argument("--many", type=int, default=200, metavar="N", help="clients of hangups")
    p.add_argument("--one-by-one", type=int, default=4, metavar="N", help="questions of that loop")
    p.add_argument("--url", help="of another server, for theirs")
    p.add_argument("--url-model", metavar="NAME")
    args = p.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    COMMANDS[args.what](args)


if __name__ == "__main__":
    main()
