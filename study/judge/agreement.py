"""A judge's verdicts against people's: accuracy and Cohen's kappa over win, tie and lose.

    python -m study.judge agreement results/7b/judge --human votes.json

In the judge's place: `longer` is the longer answer, `humans` each person against the others. Left
out: agreement of several raters as one number (study/rate/preference.py).
"""

import collections
import itertools
import pathlib

from host import files
from study import answers
from study.judge import verdicts
from study.rate import preference
from tasks import results


def verdicts_of(path: str | pathlib.Path) -> tuple:
    """({id: verdict} of a result directory of study.judge or study.rate, how many have none)."""
    head = results.read_result(path)
    if head.get("task") not in ("judge", "rate"):
        raise ValueError(
            f"{path} is a result of {head.get('task')}: verdicts are in results of study.judge and "
            "study.rate"
        )
    items = files.json_lines(pathlib.Path(path) / "samples.jsonl", repair=False)
    known = {str(i["id"]): i["verdict"] for i in items if i.get("verdict") is not None}
    return known, sum(i.get("verdict") is None for i in items)


def majority_of(votes: list[float]) -> float:
    """The verdict that more than half of the votes share; without one it is a tie."""
    choice = preference.majority(votes)
    return 0.5 if choice is None else choice


class People:
    """People's verdicts: `majority` {item: verdict}; `raters` {rater: {item: verdict}}, or {}."""

    def __init__(self, path):
        self.path, self.raters = pathlib.Path(path), {}
        if self.path.is_dir():
            self.majority = verdicts_of(self.path)[0]
            return
        by_item = collections.defaultdict(list)
        for vote in preference.read_votes(self.path)[0]:
            verdict = preference.VERDICT[vote["choice"]]
            self.raters.setdefault(vote["rater"], {})[str(vote["item"])] = verdict
        for votes in self.raters.values():
            for item, verdict in votes.items():
                by_item[item].append(verdict)
        self.majority = {i: majority_of(v) for i, v in by_item.items()}


def among_people(people: People, seed: int) -> dict:
    """{who: agreement} of every two raters, and of each with the majority of the others."""
    raters, agreements = people.raters, {}
    if len(raters) < 2:
        raise ValueError(
            f"{people.path} has no votes of each person: agreement between people needs rows with "
            "annotator1, annotator2, …"
        )
    for x, y in itertools.combinations(sorted(raters), 2):
        both = [i for i in raters[x] if i in raters[y]]
        pair = [raters[x][i] for i in both], [raters[y][i] for i in both]
        agreements[f"{x} and {y}"] = verdicts.agreement(*pair, seed=seed)
    for x in sorted(raters):
        others = {i: [raters[r][i] for r in raters if r != x and i in raters[r]] for i in raters[x]}
        others = {i: majority_of(v) for i, v in others.items() if v}
        agreements[f"{x} and the majority of the others"] = verdicts.agreement(
            [raters[x][i] for i in others], list(others.values()), seed=seed
        )
    return agreements


def longer_answers(people: People) -> dict:
    """{item: verdict} where the longer answer wins."""
    if not people.raters:
        raise ValueError(
            f"{people.path} does not hold the answers: `longer` needs rows with response1 and "
            "response2"
        )
    pairs = answers.read_pairs(people.path)[0]
    return {x["id"]: verdicts.of_scores((len(x["output"]), len(y["output"]))) for x, y in pairs}


def with_people(judge: str | pathlib.Path, people: People, seed: int) -> dict:
    """{what: agreement} of a judge (a result directory, or "longer") with the majority."""
    given, without = (longer_answers(people), 0) if judge == "longer" else verdicts_of(judge)
    both = [i for i in given if i in people.majority]
    print(
        f"{len(both)} items have both verdicts; {without} of the judge's have none, "
        f"{len(given) - len(both)} are the judge's only, {len(people.majority) - len(both)} the "
        "people's only"
    )

    def over(items):
        pair = [given[i] for i in items], [people.majority[i] for i in items]
        return verdicts.agreement(*pair, seed=seed)

    agreements = {f"{judge} and the majority of people": over(both)}
    decided = [i for i in both if given[i] != 0.5 and people.majority[i] != 0.5]
    if decided:
        agreements["the same where neither is a tie"] = over(decided)
    return agreements


def line(name: str, figures: dict) -> str:
    """One agreement in words."""
    (accuracy, ai), (kappa, ki) = figures["accuracy"], figures["kappa"]
    text = f"{name}: n {figures['n']}, accuracy {accuracy:.3f} ({ai[0]:.3f} to {ai[1]:.3f})"
    if kappa is None:
        return f"{text}, Cohen's kappa - (one verdict alone)"
    return f"{text}, Cohen's kappa {kappa:.3f}" + (f" ({ki[0]:.3f} to {ki[1]:.3f})" if ki else "")


def agreement(
    judge: str | pathlib.Path,
    human: str | pathlib.Path,
    json_path: str | pathlib.Path | None,
    seed: int,
) -> None:
    """The command: print how verdicts agree with people's, and write it where json_path says."""
    people = People(human)
    agreements = (
        among_people(people, seed) if judge == "humans" else with_people(judge, people, seed)
    )
    for name, figures in agreements.items():
        print(line(answers.plain_name(name), figures))
    if json_path:
        files.write_json(
            json_path,
            {
                "task": "agreement",
                "verdicts": str(judge),
                "human": str(human),
                "agreement": agreements,
            },
        )
