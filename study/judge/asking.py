"""Every pair of answers judged in both orders, and what the verdicts say (Figure 3 of the paper).

    python -m study.judge A B --judge URL --judge-model gpt-4 --out results/7b/judge

A is under test, B the teacher. A wins where both orders say so, else it is a tie; a reply that
failed or cannot be read leaves the pair without a verdict, and is counted. Replies are kept in
OUT/requests.jsonl: stopped, the same command goes on and asks nothing twice but what failed or
could not be read. Left out: fine-tuned judges, more than one turn.
"""

import collections
import html
import json
import pathlib
from typing import NamedTuple

import numpy as np

from host import files, terminal
from study import access, answers
from study.endpoint import Endpoint, request_key
from study.judge import prompts, replies, verdicts
from tasks import results
from tasks.page import page as result_page

SAID = {1.0: "A better", 0.5: "a tie", 0.0: "B better", None: "no verdict"}


def judged(style: str, reply: dict) -> dict:
    """A reply of the endpoint -> {"text", "scores", "verdict" of the first shown, "error"}."""
    pair = verdict = None
    if not reply["error"] and style == "vicuna":
        pair = replies.read_scores(reply["text"])
        verdict = verdicts.of_scores(pair)
    elif not reply["error"]:
        verdict = replies.read_choice(reply["text"])
    return {"text": reply["text"], "scores": pair, "verdict": verdict, "error": reply["error"]}


def item_of(name: str, a: answers.Answer, b: answers.Answer, forward: dict, backward: dict) -> dict:
    """One pair with both its replies; "verdict" is A's."""
    back = None if backward["verdict"] is None else 1 - backward["verdict"]
    verdict = verdicts.combined(forward["verdict"], back)
    orders = f"(A first: {SAID[forward['verdict']]}; B first: {SAID[back]})"
    return {
        "id": name,
        "prompt": a["instruction"],
        "output": a["output"],
        "teacher": b["output"],
        "extracted": f"{SAID[verdict]} {orders}",
        "verdict": verdict,
        "category": a.get("category") or b.get("category"),
        "length": [len(a["output"]), len(b["output"])],
        "forward": forward,
        "backward": backward,
    }


# --- figures ---


def summarise(items: list[dict], seed: int = 0) -> dict:
    """The figures of a judgement from its items (item_of's)."""
    judged = [i for i in items if i["verdict"] is not None]
    outcomes = [i["verdict"] for i in judged]
    both = [(i["forward"]["verdict"], 1 - i["backward"]["verdict"]) for i in judged]
    said = [r for i in items for r in (i["forward"], i["backward"])]
    figures = verdicts.win_rate(outcomes, seed) | {
        "unit": "win rate of A, a tie half",
        "at_least_as_good": verdicts.share(sum(v >= 0.5 for v in outcomes), len(judged)),
        "orders_agree": verdicts.share(sum(f == b for f, b in both), len(both)),
        "flipped": verdicts.share(sum(abs(f - b) == 1 for f, b in both), len(both)),
        **verdicts.position_and_length(shown_first(items)),
        "length_controlled": verdicts.length_controlled(
            outcomes, *([i["length"][k] for i in judged] for k in (0, 1)), seed=seed
        ),
        "without_verdict": len(items) - len(judged),
        "errors": sum(bool(r["error"]) for r in said),
        "unreadable": sum(r["verdict"] is None and not r["error"] for r in said),
    }
    return figures | mean_scores(judged) | by_category(judged, seed)


def shown_first(items: list[dict]) -> list:
    """(verdict of the first shown, its length, the other's length) of each reply with a verdict."""
    shown = []
    for i in items:
        for order, lengths in (("forward", i["length"]), ("backward", i["length"][::-1])):
            if i[order]["verdict"] is not None:
                shown.append((i[order]["verdict"], *lengths))
    return shown


def mean_scores(items: list[dict]) -> dict:
    """{"mean_scores"} of both sides, where the judge gave scores."""
    scores = [(i["forward"]["scores"], i["backward"]["scores"]) for i in items]
    scores = [(f, b) for f, b in scores if f and b]
    if not scores:
        return {}
    a = float(np.mean([(f[0] + b[1]) / 2 for f, b in scores]))
    return {"mean_scores": {"A": a, "B": float(np.mean([(f[1] + b[0]) / 2 for f, b in scores]))}}


def by_category(items: list[dict], seed: int) -> dict:
    """{"by_category"}, where questions have categories."""
    categories = sorted({i["category"] for i in items if i["category"]})
    if not categories:
        return {}
    of = {c: [i["verdict"] for i in items if i["category"] == c] for c in categories}
    return {"by_category": {c: verdicts.win_rate(v, seed) for c, v in of.items()}}


def percent(figure: dict) -> str:
    """A share in words, with its interval."""
    if figure["score"] is None:
        return f"- (n {figure['n']})"
    text = f"{figure['score']:.1%}"
    if not figure["interval"]:
        return text
    low, high = figure["interval"]
    return f"{text} ({low:.1%} to {high:.1%}, n {figure['n']})"


def lines(figures: dict) -> list:
    """The figures as lines for people."""
    text = [
        f"win {figures['win']}, tie {figures['tie']}, lose {figures['lose']}; win rate with ties "
        f"as half {percent(figures)}",
        f"length-controlled win rate {percent(figures['length_controlled'])}",
    ]
    labels = {
        "at_least_as_good": "at least as good",
        "orders_agree": "both orders agree",
        "flipped": "flipped with the order",
        "first_position": "decided replies for the first shown",
        "longer_answer": "decided replies for the longer answer",
    }
    text += [f"{label} {percent(figures[k])}" for k, label in labels.items() if k in figures]
    if figures.get("without_verdict"):
        text.append(
            f"without a verdict {figures['without_verdict']}: {figures['errors']} errors, "
            f"{figures['unreadable']} unreadable replies"
        )
    return text


# --- the command ---


class Sources(NamedTuple):
    """What is judged: the answers under test and the teacher's; b None: both in one file."""

    a: str
    b: str | None = None
    questions: str | None = None
    limit: int | None = None

    def read(self) -> tuple:
        """(pairs, {what is left out: n}, the two names)."""
        if self.b is None:
            pairs, left = answers.read_pairs(self.a)[0], {}
            names = [answers.name_of([p[k] for p in pairs]) for k in (0, 1)]
        else:
            a, b = (answers.read(path, self.questions) for path in (self.a, self.b))
            pairs, left = answers.pair(a, b)
            names = [answers.name_of(a), answers.name_of(b)]
        complete = []
        for x, y in pairs:
            question = y["instruction"] if x["instruction"] is None else x["instruction"]
            if question is not None:
                own = y["instruction"] if y["instruction"] is not None else question
                complete.append((x | {"instruction": question}, y | {"instruction": own}))
        if len(complete) < len(pairs):
            left["without the text of the question"] = len(pairs) - len(complete)
        if not complete:
            raise ValueError(
                f"{self.a} and {self.b} hold no texts of the questions: name them with --questions"
            )
        taken = complete[: self.limit]
        more = f", of {len(complete)} (--limit)" if len(taken) < len(complete) else ""
        terminal.say(f"A {names[0]}, B {names[1]}: {answers.counted(taken, left)}{more}")
        return taken, left, names

    def fingerprints(self) -> list:
        return [answers.fingerprint(p) for p in (self.a, self.b) if p]


def judge(
    sources: Sources,
    style: prompts.Style,
    reach: access.Access,
    out: str | pathlib.Path,
    seed: int,
    price: tuple | None = None,
) -> None:
    """Ask about every pair in both orders, and write the result directory.

    price: of a million prompt and completion tokens.
    """
    pairs, left, names = sources.read()
    out = pathlib.Path(out)
    settings = {
        "teacher": names[1],
        "judge_model": style.judge_model,
        "style": style.name,
        "prompts": style.prompts if style.name == "vicuna" else prompts.ABTIE,
        "temperature": style.temperature,
        "max_tokens": style.max_tokens,
        "limit": sources.limit,
        "seed": seed,
        "fingerprints": sources.fingerprints(),
    }
    ids = answers.unique_ids(pairs)
    with reach.endpoint(out / "requests.jsonl") as endpoint:
        result = results.Result(out, "judge", settings, names[0])
        try:
            used = ask(pairs, ids, style, endpoint, result)
        except BaseException:
            result.pause()
            raise
    figures = summarise([result.done[i] for i in ids], seed)
    figures |= {"counts": {"pairs": len(pairs)} | left, "tokens": dict(used)}
    if price:
        tokens = used["prompt_tokens"], used["completion_tokens"]
        cost = sum(n * each for n, each in zip(tokens, price, strict=True))
        figures["cost"] = round(cost / 1e6, 4)
    finish(result, ids, figures)


def ask(
    pairs: list[tuple[answers.Answer, answers.Answer]],
    ids: list[str],
    style: prompts.Style,
    endpoint: Endpoint,
    result: results.Result,
) -> collections.Counter:
    """Both orders of every pair; items go to `result` as they are judged -> Counter of the use."""
    bodies = [style.body(*order) for a, b in pairs for order in ((a, b), (b, a))]
    first = {}  # two equal answers make one request of both orders: paid for once
    for k, body in enumerate(bodies):
        first.setdefault(request_key(body), k)
    paid, said, used = set(first.values()), {}, collections.Counter()

    def readable(reply):
        return judged(style.name, reply)["verdict"] is not None

    for k, reply in access.answers(endpoint, bodies, "judge", "replies", readable):
        said[k] = judged(style.name, reply)
        if k in paid:
            used.update({n: reply[n] or 0 for n in ("prompt_tokens", "completion_tokens")})
            used["from_log" if reply["cached"] else "asked"] += 1
        n = k // 2
        if {2 * n, 2 * n + 1} <= said.keys():
            item = item_of(ids[n], *pairs[n], said[2 * n], said[2 * n + 1])
            if item["id"] in result.done:  # what failed in an earlier run may be there now
                result.done[item["id"]] = json.loads(files.dumps(item))
            else:
                result.add(item)
    return used


def finish(result: results.Result, ids: list[str], figures: dict) -> None:
    """Write the files of the result, and print it."""
    figures = result.finish(ids, figures)
    note = "<p>" + "<br>".join(map(html.escape, lines(figures))) + "</p>"
    page = result_page(figures, [result.done[i] for i in ids], note)
    files.write_whole(result.out / "index.html", page)
    used = collections.Counter(figures["tokens"])
    cost = f", {figures['cost']:.4f} at the given price" if "cost" in figures else ""
    print("\n".join(lines(figures)))
    print(
        f"{used['asked']} replies asked for, {used['from_log']} from the log, "
        f"{used['prompt_tokens']:,} prompt and {used['completion_tokens']:,} completion "
        f"tokens{cost}"
    )
    print(result.out / "index.html")
    if figures["without_verdict"]:
        terminal.say(
            f"study.judge: {figures['without_verdict']} of {len(ids)} pairs have no verdict and "
            "are left out of the figures; the same command asks again what failed or could not "
            "be read"
        )
