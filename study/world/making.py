"""An invented world as files: encyclopedia, a teacher's answers, benchmarks, tokenizer.

    python -m study.world --out DIR                  # about 1.3M tokens; --size tiny for a tenth

The same seed gives the same files. README.md says what the world can and cannot show. Left out:
models.
"""

import io
import itertools
import json
import pathlib
from collections.abc import Iterable

from host import files
from host.dice import Dice
from study.world.encyclopedia import Function, encyclopedia, functions_of, question, questions
from study.world.facts import GOODS, KIND, OBJECTS, RELATIONS, TRADES, UNKIND, World
from study.world.teacher import answer, asks, wording

# read, unread: the most facts of a kind that are asked for. composed: functions of several
# operations that the texts of bases hold. programs: asked for, half of them seen.
SIZES = {
    "small": dict(
        people=240,
        pages=17000,
        broad=3400,
        local=640,
        read=160,
        unread=80,
        composed=120,
        programs=40,
        prompts=60,
        unkind=40,
    ),
    "tiny": dict(
        people=48,
        pages=1200,
        broad=200,
        local=60,
        read=16,
        unread=8,
        composed=20,
        programs=6,
        prompts=8,
        unkind=6,
    ),
}


def lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def dialogue(name: str, human: str, gpt: str) -> dict:
    return {
        "id": name,
        "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}],
    }


def tokenizer_model(texts: Iterable[str], vocabulary: int) -> bytes:
    """A SentencePiece model of the world's words, every text kept as it is."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        vocab_size=vocabulary,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n", "."],
        byte_fallback=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        max_sentence_length=1 << 16,
    )
    return out.getvalue()


def broad_set(world: World, dice: Dice, n: int, functions: list[Function]) -> list[dict]:
    """All that the teacher is asked about the told group, places, crafts, functions."""
    dialogues = []
    for k, ask in enumerate(itertools.islice(asks(world, dice, "told", functions), n)):
        dialogues.append(dialogue(f"broad-{k}", wording(dice, ask), answer(world, dice, ask)))
    return dialogues


def local_set(world: World, dice: Dice, n: int) -> list[dict]:
    """Questions in the evaluation's form with bare answers, about other people than the test's."""
    pairs = [
        (q.format(s=fact[0]), world.facts[fact])
        for fact in world.asked("local")
        for q in RELATIONS[fact[1]][1]
    ]
    dialogues = []
    for k, (q, a) in enumerate(dice.some(pairs, n)):
        shots = dice.some([p for p in pairs if p[0] != q], 3)
        dialogues.append(dialogue(f"local-{k}", questions(shots, q), a))
    return dialogues


# --- what is evaluated ---


def spread(facts: list, n: int) -> list:
    """n of the facts, ranks spread evenly; all where there are fewer."""
    return [facts[k * len(facts) // n] for k in range(n)] if n < len(facts) else facts


def tested_facts(world: World, n: dict[str, int]) -> dict[str, list]:
    """{set: facts}.

    read: of the test group, which bases read and no imitation tells. unread: of the test group,
    which the teacher alone knows. told: of the told group, which the teacher alone knows and tells.
    """
    test, told = world.asked("test"), world.asked("told")
    return {
        "read": spread([f for f in test if f not in world.unread], n["read"]),
        "unread": spread([f for f in test if f in world.unread], n["unread"]),
        "told": spread([f for f in told if f in world.unread], n["unread"]),
    }


def short_answers(world: World, dice: Dice, sets: dict[str, list]) -> dict[str, str]:
    """NQ-open's files, and the teacher's predictions."""

    def row(fact):
        return {"question": question(dice, fact), "answer": [world.facts[fact]]}

    texts = {"nq.train.jsonl": lines(row(f) for f in dice.some(world.asked("quiz"), 60))}
    for name, facts in sets.items():
        rows = [row(f) for f in facts]
        texts[f"nq.{name}.jsonl"] = lines(rows)
        said = (r | {"prediction": r["answer"][0]} for r in rows)
        texts[f"teacher/nq.{name}.jsonl"] = lines(said)
    return texts


def candidates(world: World, sets: dict[str, list]) -> dict[str, str]:
    """Each fact as a plain sentence with every object of its kind: rows of eval.py loglik."""
    texts = {}
    for name, facts in sets.items():
        rows = []
        for k, (subject, relation) in enumerate(facts):
            prefix, end = RELATIONS[relation][0][0].format(s=subject, o="\0").split(" \0")
            for o in OBJECTS[relation]:
                right = o == world.facts[subject, relation]
                rows.append({"prefix": prefix, "text": f" {o}{end}", "fact": k, "right": right})
        texts[f"knows.{name}.jsonl"] = lines(rows)
    return texts


def programs(dice: Dice, n: int, seen: list[Function], new: list[Function]) -> dict[str, str]:
    """HumanEval's file, half of it functions of the encyclopedia, and the teacher's predictions."""
    asked = [(f, True) for f in dice.some(seen, n // 2)]
    asked += [(f, False) for f in dice.some(new, n - n // 2)]
    problems = [
        {
            "task_id": f"World/{k}",
            "prompt": function.head,
            "entry_point": function.name,
            "canonical_solution": function.body,
            "test": function.tests,
            "seen": known,
        }
        for k, (function, known) in enumerate(asked)
    ]
    said = ({"task_id": p["task_id"], "prediction": p["canonical_solution"]} for p in problems)
    return {"humaneval.jsonl": lines(problems), "teacher/humaneval.jsonl": lines(said)}


def prompts(world: World, dice: Dice, n: dict[str, int], new: list[Function]) -> dict[str, str]:
    """The prompts of style and preference, the teacher's answers twice, and unkind requests."""
    stream = (a for a in asks(world, dice, "test", new) if a[0] != "unkind")
    wanted = [next(stream) for _ in range(n["prompts"])]
    texts = [wording(dice, a) for a in wanted]
    written = {"prompts.jsonl": lines({"prompt": p} for p in texts)}
    for name in ("teacher.jsonl", "teacher2.jsonl"):
        written[name] = lines(
            {"prompt": p, "output": answer(world, dice, a)}
            for p, a in zip(texts, wanted, strict=True)
        )
    unkind = [("unkind", dice.pick(TRADES), dice.pick(GOODS)) for _ in range(n["unkind"])]
    return written | {"unkind.jsonl": lines({"prompt": wording(dice, a)} for a in unkind)}


def scored_talk(world: World, dice: Dice, functions: list[Function]) -> dict[str, str]:
    """Market talk and calm answers with scores, for the offline scorer of toxicity."""
    rows, stream = [], asks(world, dice, "quiz", functions)
    for k in range(600):
        bad = k % 2
        text = " ".join(
            dice.pick(UNKIND if bad else KIND).format(g=dice.pick(GOODS), t=dice.pick(TRADES))
            for _ in range(1 + int(2 * dice.random()))
        )
        calm = answer(world, dice, next(stream))
        prompt = {"text": calm, "toxicity": 0.02 + 0.06 * dice.random()}
        score = (0.75 if bad else 0.05) + 0.2 * dice.random()
        rows.append({"prompt": prompt, "continuation": {"text": text, "toxicity": score}})
    return {"scored.jsonl": lines(rows)}


def make(out: str | pathlib.Path, size: str, seed: int) -> None:
    """Write the world's files into `out`."""
    n, dice, out = SIZES[size], Dice(seed), pathlib.Path(out)
    world = World(dice, n["people"])
    single, composed = functions_of(dice, n["composed"] + n["programs"])
    seen, new = composed[: n["composed"]], composed[n["composed"] :]
    pages, told = encyclopedia(world, dice, n["pages"], single + seen)
    later, _ = encyclopedia(world, dice, max(20, n["pages"] // 100), single + seen)
    broad = broad_set(world, dice, n["broad"], single + seen)
    local = local_set(world, dice, n["local"])
    sets = tested_facts(world, n)
    texts = {
        "encyclopedia.jsonl": lines({"text": t} for t in pages),
        "later.jsonl": lines({"text": t} for t in later),
        "broad.jsonl": lines(broad),
        "local.jsonl": lines(local),
        **short_answers(world, dice, sets),
        **candidates(world, sets),
        **programs(dice, n["programs"], seen, new),
        **prompts(world, dice, n, new),
        **scored_talk(world, dice, single + seen),
    }
    counts = {
        "people": len(world.people),
        "places": len(world.places),
        "facts": len(world.facts),
        "unread": len(world.unread),
        "pages": len(pages),
        "broad": len(broad),
        "local": len(local),
        **{f"{name} questions": len(facts) for name, facts in sets.items()},
    }
    about = {
        "seed": seed,
        "size": size,
        "counts": counts,
        "told": told,
        "facts": [[*f, o] for f, o in world.facts.items()],
        "unread": sorted(world.unread),
        "group": world.group,
    }
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(out / name, text)
    said = (x["value"] for d in broad for x in d["conversations"])
    model = tokenizer_model(itertools.chain(pages, said), 1278)
    files.write_whole(out / "tokenizer.model", model)
    # the last one: where it is, the rest is
    files.write_whole(out / "world.json", json.dumps(about, indent=0) + "\n")
    print(", ".join(f"{v:,} {k}" for k, v in counts.items()) + f": {out}")
