"""NQ-synthetic: from ten seeds to a training set, written by a teacher; and the teacher's answers to given prompts.

    python -m study.synthesize --teacher http://localhost:8000/v1 --teacher-model NAME --n 6000 --out out/nq-synthetic
    python -m study.synthesize answers --prompts FILE --teacher URL --teacher-model NAME --out out/answers

The teacher is any OpenAI-compatible chat endpoint (pip install openai). Writes dialogues.jsonl (train.py and data.py read it), report.json and log.jsonl: every request with its
answer. Stopped, the same command goes on and asks nothing twice; --replay LOG repeats a run without a network, byte for byte. Request k is a function of (--seed, k): five of
the seed pairs in random order. Pairs are taken in the order of the requests until there are --n. Left out: whether an answer is true; prices (tokens are counted).
"""

import argparse
import collections
import json
import math
import pathlib
import random
import re
import sys

import data
from study import similar
from study.endpoint import Endpoint
from tasks import results, scores

# Table 3 of the paper, as written there.
SEEDS = [
    ("who sang who wants to be a millionare in high society?", "Frank Sinatra"),
    ("the last time la dodgers won the world series?", "1988"),
    ("who plays the medical examiner on hawaii five-o?", "Masi Oka"),
    ("when did the first harry potter movie come out?", "2001"),
    ("when was the last time india won a gold medal in hockey at olympics", "1980"),
    ("who owns the rights to baby shark song", "SmartStudy"),
    ("how many episodes are in one punch man season 1", "12"),
    ("name of the bird in the lion king", "Zazu"),
    ("who sang the rap song change clothes", "Jay-Z"),
    ("who stars as serena in gossip girl", "Blake Lively"),
]
# After Table 4 (its wording was not checked against the appendix itself); the five pairs follow.
TEMPLATE = """I want you to generate a series of questions and answers. I want the answers to be concise, just a few words. The questions should be lowercased and centered around \
Wikipedia-like entities. For example,"""
SHOTS = 5
PROBE = 8  # requests before it is known how many pairs come from one
BARREN = 50  # answers in a row without a new pair, after which there is no point in going on
MARK = re.compile(
    r"\s*(?:[-*•>#]+\s+|\(?\d+[.):]\s*)?[*_]{0,3}(q|question|a|answer)(?:\s*#?\d+)?[*_]{0,3}\s*[:.)]\s*[*_]{0,3}\s*(.*?)\s*",
    re.I,
)


# ------------------------------------------------------------------------------------------------------------------- pairs


def read_seeds(path):
    """[(question, answer)] of JSON lines {"question", "answer": str or [str]}; the paper's ten without a path."""

    def pair(row, name):
        row = similar.as_object(row)
        answer = row.get("answer")
        answer = answer[0] if isinstance(answer, list) and answer else answer
        if (
            not isinstance(row.get("question"), str)
            or not isinstance(answer, str)
            or not row["question"].strip()
            or not answer.strip()
        ):
            raise ValueError('a seed is {"question": "…", "answer": "…"}')
        return [(" ".join(row["question"].split()), " ".join(answer.split()))]

    pairs = SEEDS if path is None else list(similar.rows([path], pair, 0))
    if len(pairs) < SHOTS:
        raise ValueError(
            f"--seeds {path} holds {len(pairs)} pairs: {SHOTS} or more are needed, each request shows {SHOTS}"
        )
    return pairs


def prompt(seeds, seed, k):
    """The text of request k."""
    return (
        TEMPLATE
        + "\n\n"
        + "\n\n".join(
            f"Q: {q}\nA: {a}" for q, a in random.Random(f"{seed} {k}").sample(seeds, SHOTS)
        )
    )


def parse(text, cut_off=False):
    """An answer -> ([(question, answer)], malformed). Lines "Q: …" and "A: …" (also numbered, in bold, or written out); a line without a mark goes on the text above it.

    malformed: questions without an answer, answers without a question, empty ones. cut_off: the answer ended at the teacher's limit, so that its last pair is not whole.
    """
    pairs, malformed, question, reply, current = [], 0, None, None, None

    def close():
        nonlocal malformed, question, reply
        if question and reply:
            pairs.append((question, reply))
        elif question is not None or reply is not None:
            malformed += 1
        question = reply = None

    for line in (
        part for whole in text.splitlines() for part in re.split(r"(?<=\S)\s+(?=\**A:\s)", whole)
    ):
        found, plain = MARK.fullmatch(line), " ".join(line.split())
        if found:
            words = " ".join(found[2].strip("*_ ").split())
            current = found[1][0].lower()
            if current == "q" or reply is not None:
                close()
            if current == "q":
                question = words
            else:
                reply = words
        elif not plain:
            current = None  # what comes after a blank line without a mark is chatter
        elif current == "q":
            question = f"{question} {plain}".strip()
        elif current == "a":
            reply = f"{reply} {plain}".strip()
    if cut_off and (question is not None or reply is not None):
        return pairs, malformed + 1
    close()
    return pairs, malformed


def normalised(text):
    """How texts are told apart: as Natural Questions does, or, where that leaves nothing, in lower case."""
    return scores.normalise(text) or " ".join(text.lower().split())


class Collection:
    """The pairs kept so far, and the counts of the others."""

    def __init__(self, n, seeds, excluded):
        self.n, self.seeds, self.excluded = (
            n,
            {normalised(q) for q, _ in seeds},
            {normalised(q) for q in excluded},
        )
        self.pairs, self.seen, self.asked, self.barren = [], set(), set(), 0
        self.counts = collections.Counter(
            {
                k: 0
                for k in (
                    "requests",
                    "answered",
                    "failed",
                    "answers_without_a_pair",
                    "parsed",
                    "malformed",
                    "duplicates",
                    "copies_of_a_seed",
                    "excluded",
                    "surplus",
                    "kept",
                    "kept_with_a_question_asked_before",
                    "prompt_tokens",
                    "completion_tokens",
                )
            }
        )

    def add(self, answer):
        """The pairs of one answer."""
        c, before = self.counts, len(self.pairs)
        c["requests"] += 1
        if answer["error"] is not None:
            c["failed"] += 1
            return
        c["answered"] += 1
        c["prompt_tokens"] += answer["prompt_tokens"]
        c["completion_tokens"] += answer["completion_tokens"]
        pairs, malformed = parse(answer["text"] or "", answer["finish"] == "length")
        c["malformed"] += malformed
        c["parsed"] += len(pairs)
        c["answers_without_a_pair"] += not pairs
        for question, reply in pairs:
            asked, pair = normalised(question), (normalised(question), normalised(reply))
            if pair in self.seen:
                c["duplicates"] += 1
            elif asked in self.seeds:
                c["copies_of_a_seed"] += 1
            elif asked in self.excluded:
                c["excluded"] += 1
            elif len(self.pairs) == self.n:
                c["surplus"] += 1
            else:
                self.pairs.append((question, reply))
                c["kept"] += 1
                c["kept_with_a_question_asked_before"] += asked in self.asked
                self.seen.add(pair)
                self.asked.add(asked)
        self.barren = 0 if len(self.pairs) > before else self.barren + 1

    def next_round(self):
        """How many requests to make now: a probe, then most of what is missing at the rate so far, so that few are made in vain."""
        missing, rate = self.n - len(self.pairs), len(self.pairs) / max(self.counts["answered"], 1)
        if not missing:
            return 0
        if not rate:
            return min(PROBE, math.ceil(missing / SHOTS))
        whole = math.ceil(missing / rate)
        return whole if whole <= PROBE else math.ceil(0.9 * whole)


def synthesize(args):
    seeds = read_seeds(args.seeds)
    excluded = (
        [p for _, p, _ in similar.rows(args.exclude, similar.prompt_of)] if args.exclude else []
    )
    at_least("--n", args.n, 1)
    out = made(args.out)
    kept, k = Collection(args.n, seeds, excluded), 0
    with opened(args, out) as endpoint:
        bar = data.Progress("synthesize", args.n, "pairs")
        try:
            while size := kept.next_round():
                bodies = [
                    body(args, [{"role": "user", "content": prompt(seeds, args.seed, i)}], i)
                    for i in range(k, k + size)
                ]
                answers, failed, k = [None] * size, kept.counts["failed"], k + size
                for done, (i, answer) in enumerate(endpoint.ask_all(bodies), 1):
                    answers[i] = answer
                    bar(len(kept.pairs) + (args.n - len(kept.pairs)) * 0.9 * done / size)
                for answer in answers:
                    kept.add(answer)
                if kept.counts["failed"] - failed == size:
                    raise ValueError(
                        f"all of the last {size} requests failed ({answers[-1]['error']}): the same command goes on, with {len(kept.pairs)} of {args.n} pairs"
                    )
                if kept.barren >= BARREN:
                    raise ValueError(
                        f"the last {kept.barren} answers held no new pair ({len(kept.pairs)} of {args.n} are there; {kept.counts['malformed']} malformed, {kept.counts['duplicates']} duplicates): see {endpoint.log}, use more --seeds, a higher --temperature, or --n {max(len(kept.pairs), 1)}"
                    )
        finally:
            bar.close()
    rows = [
        dialogue(f"nq-synthetic-{i:06d}", q, a, "nq-synthetic")
        for i, (q, a) in enumerate(kept.pairs)
    ]
    settings = {
        name: getattr(args, name)
        for name in ("teacher_model", "n", "seed", "temperature", "max_tokens")
    } | {"seeds": len(seeds), "excluded_questions": len(excluded)}
    close(out, rows, settings, kept.counts, endpoint)


# ----------------------------------------------------------------------------------------------------------------- answers


def answers(args):
    prompts = [(name, text) for name, text, _ in similar.rows(args.prompts, similar.prompt_of)]
    at_least("--samples", args.samples, 1)
    out, counts = (
        made(args.out),
        collections.Counter(
            {
                k: 0
                for k in (
                    "prompts",
                    "requests",
                    "failed",
                    "without_text",
                    "cut_off",
                    "kept",
                    "prompt_tokens",
                    "completion_tokens",
                )
            }
        ),
    )
    counts["prompts"] = len(prompts)
    system = [{"role": "system", "content": args.system}] if args.system else []
    asked = [(name, text, k) for name, text in prompts for k in range(args.samples)]
    bodies = [body(args, [*system, {"role": "user", "content": text}], k) for _, text, k in asked]
    found = [None] * len(bodies)
    with opened(args, out) as endpoint:
        bar = data.Progress("answers", len(bodies), "answers")
        try:
            for done, (i, answer) in enumerate(endpoint.ask_all(bodies), 1):
                found[i] = answer
                bar(done)
        finally:
            bar.close()
    rows = []
    for (name, text, k), answer in zip(asked, found, strict=True):
        counts["requests"] += 1
        counts["prompt_tokens"] += answer["prompt_tokens"]
        counts["completion_tokens"] += answer["completion_tokens"]
        if answer["error"] is not None:
            counts["failed"] += 1
        elif not (answer["text"] or "").strip():
            counts["without_text"] += 1
        else:
            counts["cut_off"] += answer["finish"] == "length"
            rows.append(
                dialogue(
                    name if args.samples == 1 else f"{name}.{k}",
                    text,
                    answer["text"],
                    args.teacher_model,
                )
            )
    counts["kept"] = len(rows)
    settings = {
        name: getattr(args, name)
        for name in ("teacher_model", "temperature", "max_tokens", "samples", "system")
    } | {"prompts": [pathlib.Path(p).name for p in args.prompts]}
    close(out, rows, settings, counts, endpoint)
    if counts["failed"]:
        print(
            f"{counts['failed']} requests failed: the same command asks them again", file=sys.stderr
        )


# ------------------------------------------------------------------------------------------------------------------ shared


def dialogue(name, asked, said, source):
    return {
        "id": name,
        "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}],
        "source": source,
    }


def body(args, messages, draw):
    more = {} if args.max_tokens is None else {"max_tokens": args.max_tokens}
    return {
        "model": args.teacher_model,
        "messages": messages,
        "temperature": args.temperature,
        **more,
        "draw": draw,
    }


def at_least(name, value, least):
    if value < least:
        raise ValueError(f"{name} {value} is out of range: use {least} or more")


def made(out):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    return out


def opened(args, out):
    if not args.replay and not args.teacher:
        raise ValueError(
            "a teacher is needed: --teacher URL of an OpenAI-compatible endpoint, or --replay LOG"
        )
    how = {
        "key_file": args.api_key_file,
        "concurrency": args.concurrency,
        "timeout": args.timeout,
        "retries": args.retries,
    }
    return Endpoint(args.teacher, args.replay or out / "log.jsonl", replay=bool(args.replay), **how)


def close(out, rows, settings, counts, endpoint):
    """Write the dialogues and the report, and print it. The report is of the answers, not of when they came: a run in one go, an interrupted one and a replay give the same bytes."""
    results.write_beside(
        out / "dialogues.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )
    results.write_beside(
        out / "report.json", results.dumps({"settings": settings, **counts}, indent=2) + "\n"
    )
    for name, n in counts.items():
        print(f"{n:>12,} {name.replace('_', ' ')}")
    print(
        f"{endpoint.counts['cached']:,} answers were in the log, {endpoint.counts['asked']:,} asked now"
        + "".join(
            f"; {n} {what}"
            for what, n in sorted(endpoint.counts.items())
            if what.startswith("retried")
        )
    )
    print(f"{out / 'dialogues.jsonl'}")


def parser(command):
    about = __doc__.split("\n\n")
    p = argparse.ArgumentParser(
        prog="python -m study.synthesize" + (" answers" if command == "answers" else ""),
        description=about[0],
        epilog=about[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    g = p.add_argument_group("teacher")
    g.add_argument(
        "--teacher",
        metavar="URL",
        default="",
        help="an OpenAI-compatible endpoint, such as http://localhost:8000/v1",
    )
    g.add_argument("--teacher-model", metavar="NAME", required=True, help="its name there")
    g.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="a file with the key alone [default: the variable OPENAI_API_KEY]; it is written nowhere",
    )
    g.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="[default %(default)s, the paper's]",
    )
    g.add_argument(
        "--max-tokens", type=int, metavar="N", help="longest answer [default: the teacher's]"
    )
    g.add_argument(
        "--concurrency",
        type=int,
        default=8,
        metavar="N",
        help="requests at once [default %(default)s]",
    )
    g.add_argument(
        "--timeout",
        type=float,
        default=120,
        metavar="S",
        help="seconds for one try [default %(default)s]",
    )
    g.add_argument(
        "--retries",
        type=int,
        default=6,
        metavar="N",
        help="further tries on 429, 5xx, time-outs and broken answers, each after twice the wait [default %(default)s]",
    )
    g.add_argument(
        "--replay",
        metavar="LOG",
        help="take the answers from the log of an earlier run; no network",
    )
    if command == "answers":
        g = p.add_argument_group("prompts")
        g.add_argument(
            "--prompts",
            nargs="+",
            required=True,
            metavar="FILE",
            help="rows with a prompt, an instruction (and input), a text or a question; or dialogues, whose first user turn is asked",
        )
        g.add_argument("--system", metavar="TEXT", help="a system message before each prompt")
        g.add_argument(
            "--samples",
            type=int,
            default=1,
            metavar="N",
            help="answers to each prompt [default %(default)s]",
        )
    else:
        g = p.add_argument_group("pairs")
        g.add_argument(
            "--n",
            type=int,
            default=6000,
            metavar="N",
            help="pairs to make [default %(default)s, the paper's]",
        )
        g.add_argument(
            "--seeds",
            metavar="FILE",
            help='JSON lines {"question", "answer"} [default: the ten of the paper]',
        )
        g.add_argument(
            "--exclude",
            nargs="+",
            metavar="FILE",
            help="evaluation files (such as NQ-open.dev.jsonl) whose questions are dropped where they come up",
        )
        g.add_argument(
            "--seed",
            type=int,
            default=0,
            metavar="N",
            help="of the pairs shown [default %(default)s]",
        )
    p.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for dialogues.jsonl, report.json and log.jsonl",
    )
    return p


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    command = "answers" if argv[:1] == ["answers"] else "pairs"
    args = parser(command).parse_args(argv[command == "answers" :])
    try:
        (answers if command == "answers" else synthesize)(args)
    except (ValueError, OSError) as error:
        print(f"synthesize.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("synthesize.py: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
