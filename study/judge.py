"""Which of two answers does a strong model prefer? Every pair is asked in both orders (Figure 3 of the paper), Vicuna's way (scores from 1 to 10) or as A, B or tie.

    python -m study.judge results/7b/generate answer_gpt35.jsonl --judge https://api.openai.com/v1 --judge-model gpt-4 --out results/7b/judge
    python -m study.judge review review_gpt35_vicuna-7b.jsonl           # score sums, wins, ties, losses of Vicuna's own review files
    python -m study.judge annotations annotations.json.gz                # the same of AlpacaEval's
    python -m study.judge agreement results/7b/judge --human votes.json  # a judge against people; `longer` and `humans` in the judge's place: the longer answer, each person

A is under test, B the teacher. A wins where both orders say so, else it is a tie; a reply that failed or cannot be read leaves the pair without a verdict, and
is counted. Replies are kept in OUT/requests.jsonl: stopped, the same command goes on and asks nothing twice; --replay opens no connection. Left out: fine-tuned
judges, more than one turn.
"""

import argparse
import collections
import html
import itertools
import json
import pathlib
import re
import sys

import numpy as np

from data import Progress
from study import answers, preference, verdicts
from tasks import results

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
FORM = (
    "[Question]\n{question}\n\n[The Start of Assistant 1's Answer]\n{answer_1}\n\n[The End of Assistant 1's Answer]\n\n"
    "[The Start of Assistant 2's Answer]\n{answer_2}\n\n[The End of Assistant 2's Answer]\n\n[System]\n{prompt}\n\n"
)
# The three prompts of Vicuna's evaluation, by the category of the question: lm-sys/vicuna-blog-eval, eval/table/prompt.jsonl (Apache-2.0); equal to the file, which a test on it holds.
VICUNA = {
    "general": "We would like to request your feedback on the performance of two AI assistants in response to the user question displayed above.\nPlease rate the helpfulness, relevance, "
    "accuracy, level of details of their responses. Each assistant receives an overall score on a scale of 1 to 10, where a higher score indicates better overall "
    "performance.\nPlease first output a single line containing only two values indicating the scores for Assistant 1 and 2, respectively. The two scores are separated by a "
    "space. In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any potential bias and ensuring that the order in which the "
    "responses were presented does not affect your judgment.",
    "coding": "Your task is to evaluate the coding abilities of the above two assistants. They have been asked to implement a program to solve a given problem. Please review their code "
    "submissions, paying close attention to their problem-solving approach, code structure, readability, and the inclusion of helpful comments.\n\nPlease ensure that the "
    "assistants' submissions:\n\n1. Correctly implement the given problem statement.\n2. Contain accurate and efficient code.\n3. Include clear and concise comments that "
    "explain the code's logic and functionality.\n4. Adhere to proper coding standards and best practices.\n\nOnce you have carefully reviewed both submissions, provide "
    "detailed feedback on their strengths and weaknesses, along with any suggestions for improvement. You should first output a single line containing two scores on the scale "
    "of 1-10 (1: no code/no sense; 10: perfect) for Assistant 1 and 2, respectively. Then give extra comments starting from the next line.",
    "math": "We would like to request your feedback on the mathematical proficiency of two AI assistants regarding the given user question displayed above.\nFirst, please solve the "
    "problem independently, without referring to the answers provided by Assistant 1 and Assistant 2.\nAfterward, please examine the problem-solving process of Assistant 1 "
    "and Assistant 2 step-by-step to ensure their correctness, identifying any incorrect steps if present. Your evaluation should take into account not only the answer but "
    "also the problem-solving steps.\nFinally, please output a Python tuple containing two numerical scores for Assistant 1 and Assistant 2, ranging from 1 to 10, "
    "respectively. If applicable, explain the reasons for any variations in their scores and determine which assistant performed better.",
}
ABTIE = """[Question]
{question}

[The Start of Answer A]
{answer_1}
[The End of Answer A]

[The Start of Answer B]
{answer_2}
[The End of Answer B]

Which answer serves the person who asked the question better? Weigh helpfulness, correctness and completeness. Neither the order nor the length of the answers may decide.
Explain in one or two sentences, then end with your verdict alone on a line: [[A]] if A is better, [[B]] if B is better, [[tie]] if they are equally good."""


def read_prompts(path):
    """{category: (system prompt, template with the request in place)} of a file like Vicuna's prompt.jsonl; None: the three built in."""
    if path is None:
        return {c: (SYSTEM, FORM.replace("{prompt}", text)) for c, text in VICUNA.items()}
    found = {}
    for place, row in answers.rows_of(path):
        template, category = row.get("prompt_template"), row.get("category")
        if (
            not isinstance(template, str)
            or not isinstance(category, str)
            or any("{" + n + "}" not in template for n in ("question", "answer_1", "answer_2"))
        ):
            raise ValueError(
                f'{path} {place} is no prompt: it needs "category" and "prompt_template" with {{question}}, {{answer_1}} and {{answer_2}} in it'
            )
        for name, text in (row.get("defaults") or {}).items():
            template = template.replace("{" + name + "}", str(text))
        found[category] = (str(row.get("system_prompt") or SYSTEM), template)
    if "general" not in found:
        raise ValueError(
            f'{path} has no prompt of category "general", which every question without a category of its own takes'
        )
    return found


def request(style, prompts, judge, first, second, temperature, max_tokens):
    """The body of one request: `first` is shown first. Texts are put in at once, so that an answer which holds "{answer_2}" stays as it is."""
    system, template = (
        prompts.get(first.get("category") or second.get("category"), prompts["general"])
        if style == "vicuna"
        else (SYSTEM, ABTIE)
    )
    texts = {
        "question": first["instruction"],
        "answer_1": first["output"],
        "answer_2": second["output"],
    }
    content = re.sub(r"\{(question|answer_1|answer_2)\}", lambda m: texts[m[1]], template)
    return {
        "model": judge,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": content}],
    }


def judged(style, reply):
    """A reply of the endpoint -> {"text", "scores", "verdict" of the first shown, "error"}."""
    pair = verdicts.read_scores(reply["text"]) if style == "vicuna" and not reply["error"] else None
    verdict = (
        None
        if reply["error"]
        else verdicts.of_scores(pair)
        if style == "vicuna"
        else verdicts.read_choice(reply["text"])
    )
    return {"text": reply["text"], "scores": pair, "verdict": verdict, "error": reply["error"]}


def item_of(name, a, b, forward, backward):
    """One pair with both its replies; "verdict" is A's."""
    back = None if backward["verdict"] is None else 1 - backward["verdict"]
    verdict = verdicts.combined(forward["verdict"], back)
    said = {1.0: "A better", 0.5: "a tie", 0.0: "B better", None: "no verdict"}
    return {
        "id": name,
        "prompt": a["instruction"],
        "output": a["output"],
        "teacher": b["output"],
        "extracted": f"{said[verdict]} (A first: {said[forward['verdict']]}; B first: {said[back]})",
        "verdict": verdict,
        "category": a.get("category") or b.get("category"),
        "length": [len(a["output"]), len(b["output"])],
        "forward": forward,
        "backward": backward,
    }


def summarise(items, seed=0):
    """The figures of a judgement from its items (item_of's)."""
    whole = [i for i in items if i["verdict"] is not None]
    found = verdicts.win_rate([i["verdict"] for i in whole], seed) | {
        "unit": "win rate of A, a tie half"
    }
    replies = [r for i in items for r in (i["forward"], i["backward"])]
    both = [(i["forward"]["verdict"], 1 - i["backward"]["verdict"]) for i in whole]
    shown = [
        (i[o]["verdict"], *(i["length"] if o == "forward" else i["length"][::-1]))
        for i in items
        for o in ("forward", "backward")
        if i[o]["verdict"] is not None
    ]
    found |= {
        "at_least_as_good": verdicts.share(sum(i["verdict"] >= 0.5 for i in whole), len(whole)),
        "orders_agree": verdicts.share(sum(f == b for f, b in both), len(both)),
        "flipped": verdicts.share(sum(abs(f - b) == 1 for f, b in both), len(both)),
        **verdicts.position_and_length(shown),
        "length_controlled": verdicts.length_controlled(
            [i["verdict"] for i in whole],
            *([i["length"][k] for i in whole] for k in (0, 1)),
            seed=seed,
        ),
        "without_verdict": len(items) - len(whole),
        "errors": sum(bool(r["error"]) for r in replies),
        "unreadable": sum(r["verdict"] is None and not r["error"] for r in replies),
    }
    scored = [
        (i["forward"]["scores"], i["backward"]["scores"])
        for i in whole
        if i["forward"]["scores"] and i["backward"]["scores"]
    ]
    if scored:
        found["mean_scores"] = {
            "A": float(np.mean([(f[0] + b[1]) / 2 for f, b in scored])),
            "B": float(np.mean([(f[1] + b[0]) / 2 for f, b in scored])),
        }
    categories = sorted({i["category"] for i in whole if i["category"]})
    if categories:
        found["by_category"] = {
            c: verdicts.win_rate([i["verdict"] for i in whole if i["category"] == c], seed)
            for c in categories
        }
    return found


def percent(m):
    if m["score"] is None:
        return f"- (n {m['n']})"
    return f"{m['score']:.1%}" + (
        f" ({m['interval'][0]:.1%} to {m['interval'][1]:.1%}, n {m['n']})" if m["interval"] else ""
    )


def lines(found):
    """The figures as lines for people."""
    text = [
        f"win {found['win']}, tie {found['tie']}, lose {found['lose']}; win rate with ties as half {percent(found)}",
        f"length-controlled win rate {percent(found['length_controlled'])}",
    ]
    labels = {
        "at_least_as_good": "at least as good",
        "orders_agree": "both orders agree",
        "flipped": "flipped with the order",
        "first_position": "decided replies for the first shown",
        "longer_answer": "decided replies for the longer answer",
    }
    text += [f"{label} {percent(found[k])}" for k, label in labels.items() if k in found]
    return text + (
        [
            f"without a verdict {found['without_verdict']}: {found['errors']} errors, {found['unreadable']} unreadable replies"
        ]
        if found.get("without_verdict")
        else []
    )


# ------------------------------------------------------------------------------------------------------------------ judge


def judge(args):
    """Ask about every pair in both orders, and write the result directory."""
    if args.b is None:
        pairs, left = answers.read_pairs(args.a)[0], {}
        names = [
            collections.Counter(p[k]["model"] for p in pairs).most_common(1)[0][0] for k in (0, 1)
        ]
    else:
        a, b = (answers.read(path, args.questions) for path in (args.a, args.b))
        (pairs, left), names = answers.pair(a, b), [answers.name_of(a), answers.name_of(b)]
    asked = [
        (x, y) if x["instruction"] is not None else (x | {"instruction": y["instruction"]}, y)
        for x, y in pairs
        if (x["instruction"] or y["instruction"]) is not None
    ]
    asked = [
        (x, y if y["instruction"] is not None else y | {"instruction": x["instruction"]})
        for x, y in asked
    ]
    if len(asked) < len(pairs):
        left["without the text of the question"] = len(pairs) - len(asked)
    if not asked:
        raise ValueError(
            f"{args.a} and {args.b} hold no texts of the questions: name them with --questions"
        )
    pairs = asked[: args.limit] if args.limit else asked
    print(
        f"A {names[0]}, B {names[1]}: {answers.counted(pairs, left)}"
        + (f", of {len(asked)} (--limit)" if len(pairs) < len(asked) else ""),
        file=sys.stderr,
    )
    if not args.replay and not args.judge:
        raise ValueError(
            "the judge needs an endpoint: --judge URL (or --replay, with the requests.jsonl of an earlier run in --out)"
        )
    out, prompts = pathlib.Path(args.out), read_prompts(args.prompts)
    settings = {
        "teacher": names[1],
        "judge_model": args.judge_model,
        "style": args.style,
        "prompts": prompts if args.style == "vicuna" else ABTIE,
        "temperature": args.temperature,
        "max_tokens": args.max_tokens,
        "limit": args.limit,
        "seed": args.seed,
        "fingerprints": [answers.fingerprint(p) for p in (args.a, args.b) if p],
    }
    ids = answers.unique_ids(pairs)
    bodies = [
        request(args.style, prompts, args.judge_model, *order, args.temperature, args.max_tokens)
        for a, b in pairs
        for order in ((a, b), (b, a))
    ]
    from study.endpoint import Endpoint, request_key  # late: the other commands need no endpoint

    first = {}  # two equal answers make one request of both orders: paid for once
    for k, body in enumerate(bodies):
        first.setdefault(request_key(body), k)
    paid = set(first.values())
    with Endpoint(
        args.judge,
        out / "requests.jsonl",
        key_file=args.api_key_file,
        concurrency=args.concurrency,
        replay=args.replay,
    ) as endpoint:
        result = results.Result(out, "judge", settings, names[0])
        replies, used, bar = {}, collections.Counter(), Progress("judge", len(bodies), "replies")
        try:
            for k, reply in endpoint.ask_all(bodies):
                replies[k] = judged(args.style, reply)
                if k in paid:
                    used.update(
                        prompt_tokens=reply["prompt_tokens"] or 0,
                        completion_tokens=reply["completion_tokens"] or 0,
                        **{"from_log" if reply["cached"] else "asked": 1},
                    )
                n = k // 2
                if {2 * n, 2 * n + 1} <= replies.keys():
                    item = item_of(ids[n], *pairs[n], replies[2 * n], replies[2 * n + 1])
                    if item["id"] in result.done:  # what failed in an earlier run may be there now
                        result.done[item["id"]] = json.loads(results.dumps(item))
                    else:
                        result.add(item)
                bar(len(replies))
        except BaseException:
            result.pause()
            raise
        finally:
            bar.close()
    found = summarise([result.done[i] for i in ids], args.seed) | {
        "counts": {"pairs": len(pairs)} | left,
        "tokens": dict(used),
    }
    if args.price:
        found["cost"] = round(
            (used["prompt_tokens"] * args.price[0] + used["completion_tokens"] * args.price[1])
            / 1e6,
            4,
        )
    found = result.finish(ids, found)
    results.write_beside(
        out / "index.html",
        results.page(
            found,
            [result.done[i] for i in ids],
            "<p>" + "<br>".join(map(html.escape, lines(found))) + "</p>",
        ),
    )
    print("\n".join(lines(found)))
    print(
        f"{used['asked']} replies asked for, {used['from_log']} from the log, {used['prompt_tokens']:,} prompt and {used['completion_tokens']:,} completion tokens"
        + (f", {found['cost']:.4f} at the given price" if args.price else "")
    )
    print(out / "index.html")
    if found["without_verdict"]:
        print(
            f"study.judge: {found['without_verdict']} of {len(pairs)} pairs have no verdict and are left out of the figures; the same command asks again what failed",
            file=sys.stderr,
        )


# ------------------------------------------------------------------------------------------------------- existing judgements


def review(args):
    """Vicuna's review files: what each says, parsed anew and held against the recorded scores."""
    lengths, models = {}, {}
    for path in args.answers or ():
        for _, row in answers.rows_of(path):
            lengths[row.get("answer_id")], models[row.get("answer_id")] = (
                len(row.get("text") or ""),
                row.get("model_id"),
            )
    for path in args.files:
        rows, pairs, differ = answers.rows_of(path), [], 0
        for place, row in rows:
            if (
                not isinstance(row.get("text"), str)
                or not {"answer1_id", "answer2_id"} <= row.keys()
            ):
                raise ValueError(
                    f'{path} {place} is no review: a row has "text", "answer1_id", "answer2_id" and "score"'
                )
            pair = verdicts.read_scores(row["text"])
            differ += "score" in row and (pair is None or list(pair) != row["score"])
            pairs.append((pair, row["answer1_id"], row["answer2_id"]))
        read = [p for p in pairs if p[0] is not None]
        each = [verdicts.of_scores(p) for p, _, _ in read]
        names = " / ".join(
            dict.fromkeys(
                answers.printable(models.get(row[k]))
                for k in ("answer1_id", "answer2_id")
                for _, row in rows[:1]
                if row[k] in models
            )
        )
        print(f"{path}" + (f" ({names})" if names else ""))
        print(
            f"  {len(rows)} reviews, {len(rows) - len(read)} unreadable, {differ} read otherwise than recorded; score sums {sum(p[0] for p, _, _ in read):.1f} / {sum(p[1] for p, _, _ in read):.1f}"
        )
        found = verdicts.win_rate(each)
        print(
            f"  first answer: win {found['win']}, tie {found['tie']}, lose {found['lose']}; win rate with ties as half {percent(found)}"
        )
        measured = [
            (v, lengths[a], lengths[b])
            for v, (_, a, b) in zip(each, read, strict=True)
            if a in lengths and b in lengths
        ]
        if measured:
            print(
                f"  length-controlled {percent(verdicts.length_controlled(*zip(*measured, strict=True)))}; decided for the longer answer {percent(verdicts.position_and_length(measured)['longer_answer'])}"
            )


def annotations(args):
    """AlpacaEval's annotations: the win rate of the second model, as published, and length-controlled."""
    (pairs, rows), judgements = answers.read_pairs(args.file), []
    for (a, b), row in zip(pairs, rows, strict=True):
        p = row.get("preference")
        if p is not None and p not in (0, 1, 1.5, 2):
            raise ValueError(
                f"{args.file}: preference {p!r} is none of 1 (first), 2 (second), 0 and 1.5 (tie)"
            )
        if p is not None:
            judgements.append(({1: 0.0, 2: 1.0}.get(p, 0.5), len(b["output"]), len(a["output"])))
    if not judgements:
        raise ValueError(f"{args.file} has no preference in any of its {len(rows)} rows")
    found = verdicts.win_rate([v for v, _, _ in judgements])
    print(
        f"{pairs[0][1]['model']} against {pairs[0][0]['model']}: {len(judgements)} rows, {len(rows) - len(judgements)} without a preference"
    )
    print(
        f"win {found['win']}, tie {found['tie']}, lose {found['lose']}; win rate with ties as half {100 * found['score']:.2f} % ({percent(found)})"
    )
    print(
        f"length-controlled {percent(verdicts.length_controlled(*zip(*judgements, strict=True)))}; decided for the longer answer {percent(verdicts.position_and_length(judgements)['longer_answer'])}"
    )


def verdicts_of(path):
    """{id: verdict} of a result directory of study.judge or study.rate, and what was left out."""
    head = results.read_result(path)
    if head.get("task") not in ("judge", "rate"):
        raise ValueError(
            f"{path} is a result of {head.get('task')}: verdicts are in results of study.judge and study.rate"
        )
    items = results.read_lines(pathlib.Path(path) / "samples.jsonl", repair=False)
    return {str(i["id"]): i["verdict"] for i in items if i.get("verdict") is not None}, sum(
        i.get("verdict") is None for i in items
    )


def agreement_lines(name, found):
    (accuracy, ai), (kappa, ki) = found["accuracy"], found["kappa"]
    text = f"{name}: n {found['n']}, accuracy {accuracy:.3f} ({ai[0]:.3f} to {ai[1]:.3f})"
    return text + (
        ", Cohen's kappa - (one verdict alone)"
        if kappa is None
        else f", Cohen's kappa {kappa:.3f}" + (f" ({ki[0]:.3f} to {ki[1]:.3f})" if ki else "")
    )


def agreement(args):
    """Verdicts against people's: accuracy and Cohen's kappa over win, tie, lose."""
    human, out = pathlib.Path(args.human), {}
    raters = {}
    if human.is_dir():
        majority = verdicts_of(human)[0]
    else:
        for v in preference.read_votes(human)[0]:
            raters.setdefault(v["rater"], {})[str(v["item"])] = preference.VERDICT[v["choice"]]
        by_item = collections.defaultdict(list)
        for votes in raters.values():
            for i, v in votes.items():
                by_item[i].append(v)
        majority = {
            i: 0.5 if (m := preference.majority(v)) is None else m for i, v in by_item.items()
        }
    if args.verdicts == "humans":
        if len(raters) < 2:
            raise ValueError(
                f"{human} has no votes of each person: agreement between people needs rows with annotator1, annotator2, …"
            )
        for x, y in itertools.combinations(sorted(raters), 2):
            both = [i for i in raters[x] if i in raters[y]]
            out[f"{x} and {y}"] = verdicts.agreement(
                [raters[x][i] for i in both], [raters[y][i] for i in both], seed=args.seed
            )
        for x in sorted(raters):
            others = {
                i: [raters[r][i] for r in raters if r != x and i in raters[r]] for i in raters[x]
            }
            others = {
                i: 0.5 if (m := preference.majority(v)) is None else m
                for i, v in others.items()
                if v
            }  # no majority: a tie, as everywhere
            out[f"{x} and the majority of the others"] = verdicts.agreement(
                [raters[x][i] for i in others], list(others.values()), seed=args.seed
            )
    else:
        if args.verdicts == "longer":
            if not raters:
                raise ValueError(
                    f"{human} does not hold the answers: `longer` needs rows with response1 and response2"
                )
            given, without = (
                {
                    x["id"]: verdicts.of_scores((len(x["output"]), len(y["output"])))
                    for x, y in answers.read_pairs(human)[0]
                },
                0,
            )
        else:
            given, without = verdicts_of(args.verdicts)
        both = [i for i in given if i in majority]
        print(
            f"{len(both)} items have both verdicts; {without} of the judge's have none, {len(given) - len(both)} are the judge's only, {len(majority) - len(both)} the people's only"
        )
        out[f"{args.verdicts} and the majority of people"] = verdicts.agreement(
            [given[i] for i in both], [majority[i] for i in both], seed=args.seed
        )
        decided = [i for i in both if given[i] != 0.5 and majority[i] != 0.5]
        if decided:
            out["the same where neither is a tie"] = verdicts.agreement(
                [given[i] for i in decided], [majority[i] for i in decided], seed=args.seed
            )
    for name, found in out.items():
        print(agreement_lines(answers.printable(name), found))
    if args.json:
        results.write_beside(
            args.json,
            results.dumps(
                {
                    "task": "agreement",
                    "verdicts": str(args.verdicts),
                    "human": str(args.human),
                    "agreement": out,
                },
                indent=2,
            )
            + "\n",
        )


# --------------------------------------------------------------------------------------------------------------- command


def price(text):
    try:
        found = tuple(float(x) for x in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 2 or min(found) < 0:
        raise argparse.ArgumentTypeError(
            f"{text} is not PROMPT,COMPLETION: two prices of a million tokens, such as 30,60"
        )
    return found


def parsers():
    """{command: parser}; None is the judge itself, whose first argument is a path."""
    p = argparse.ArgumentParser(
        prog="study.judge",
        description="A strong model's preference between two sets of answers, asked in both orders.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other commands: review FILES (Vicuna's reviews), annotations FILE (AlpacaEval's), agreement VERDICTS --human FILE; each has its --help.\n"
        "Leaves --out with results.json, samples.jsonl, index.html and requests.jsonl; stopped, the same command goes on.",
    )
    p.add_argument(
        "a",
        metavar="A",
        help="answers under test: a result directory of eval.py generate, AlpacaEval JSON, Vicuna JSON lines; or, alone, a file with both answers in a row (PandaLM, AlpacaEval's annotations)",
    )
    p.add_argument("b", metavar="B", nargs="?", help="the teacher's answers to the same questions")
    g = p.add_argument_group("judge")
    g.add_argument(
        "--judge",
        metavar="URL",
        help="an OpenAI-compatible endpoint, such as http://localhost:8000/v1",
    )
    g.add_argument("--judge-model", required=True, metavar="NAME", help="the judge's name there")
    g.add_argument(
        "--style",
        choices=["vicuna", "abtie"],
        default="vicuna",
        help="scores from 1 to 10, as Vicuna's evaluation; or A, B or tie [default %(default)s]",
    )
    g.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts in the form of Vicuna's prompt.jsonl [default: its three, built in; by the question's category]",
    )
    g.add_argument(
        "--questions",
        metavar="FILE",
        help="Vicuna's question.jsonl [default: one folder up from its answers]",
    )
    g.add_argument(
        "--temperature",
        type=float,
        default=0.2,
        metavar="T",
        help="[default %(default)s, Vicuna's]",
    )
    g.add_argument(
        "--max-tokens",
        type=int,
        default=1024,
        metavar="N",
        help="of a reply [default %(default)s, Vicuna's]",
    )
    g.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="a file with the key alone [default: the openai package's own variable]",
    )
    g.add_argument(
        "--concurrency",
        type=int,
        default=8,
        metavar="N",
        help="requests at once [default %(default)s]",
    )
    g.add_argument(
        "--price",
        type=price,
        metavar="PROMPT,COMPLETION",
        help="of a million tokens, in any currency: the result then says the cost",
    )
    g = p.add_argument_group("run")
    g.add_argument("--out", required=True, metavar="DIR", help="result directory")
    g.add_argument(
        "--replay",
        action="store_true",
        help="answer from OUT/requests.jsonl alone and open no connection",
    )
    g.add_argument("--limit", type=int, metavar="N", help="only the first N pairs")
    g.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the intervals [default %(default)s]"
    )
    r = argparse.ArgumentParser(
        prog="study.judge review",
        description="Score sums and wins of Vicuna's review files, parsed anew.",
    )
    r.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="review JSON lines: text, score, answer1_id, answer2_id",
    )
    r.add_argument(
        "--answers",
        nargs="+",
        metavar="FILE",
        help="the answers reviewed: adds names, the share of longer answers and the length-controlled win rate",
    )
    n = argparse.ArgumentParser(
        prog="study.judge annotations",
        description="Win rate of AlpacaEval's annotations: as published, and length-controlled.",
    )
    n.add_argument("file", metavar="FILE", help="annotations JSON, .gz or not")
    h = argparse.ArgumentParser(
        prog="study.judge agreement",
        description="A judge's verdicts against people's: accuracy and Cohen's kappa over win, tie and lose, with bootstrap intervals.",
    )
    h.add_argument(
        "verdicts",
        metavar="VERDICTS",
        help="a result directory of study.judge; or `longer`: the longer answer wins; or `humans`: every person against the others",
    )
    h.add_argument(
        "--human",
        required=True,
        metavar="FILE",
        help="PandaLM's votes (annotator1, annotator2, …), or a result directory of study.rate; the majority counts, without one it is a tie",
    )
    h.add_argument("--json", metavar="FILE", help="also write the figures there")
    h.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the intervals [default %(default)s]"
    )
    return {
        None: (p, judge),
        "review": (r, review),
        "annotations": (n, annotations),
        "agreement": (h, agreement),
    }


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    commands = parsers()
    name = argv[0] if argv and argv[0] in commands else None
    parser, run = commands[name]
    args = parser.parse_args(argv[1:] if name else argv)
    try:
        if getattr(args, "limit", None) is not None and args.limit < 1:
            raise ValueError(f"--limit {args.limit} is out of range: use 1 or more")
        run(args)
    except ValueError as error:
        print(f"study.judge: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("study.judge: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
