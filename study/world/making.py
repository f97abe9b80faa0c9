"""An invented world as files: encyclopedia, a teacher's answers, benchmarks, tokenizer.

    python -m study.world --out DIR                  # about 1.2M tokens; --size tiny for a tenth

The same seed gives the same files. README.md says what the world can and cannot show. Left out:
models.
"""

import csv
import io
import itertools
import json
import pathlib
from collections.abc import Iterable

from host import files
from host.dice import Dice
from study.world.encyclopedia import choices, encyclopedia, function, question, questions
from study.world.facts import GOODS, KIND, RELATIONS, TRADES, UNKIND, World
from study.world.teacher import answer, asks, wording

SIZES = {
    "small": dict(
        people=240,
        paragraphs=17000,
        broad=3400,
        local=900,
        test=200,
        choice=60,
        programs=33,
        prompts=60,
        unkind=40,
    ),
    "tiny": dict(
        people=48,
        paragraphs=1500,
        broad=200,
        local=60,
        test=24,
        choice=8,
        programs=8,
        prompts=12,
        unkind=8,
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


def broad_set(world: World, dice: Dice, n: dict[str, int], functions: list) -> list:
    """All that the teacher is asked about few and famous people, as dialogues."""
    stream = asks(world, dice, "quiz", max(12, n["people"] // 8), functions)
    dialogues = []
    for k in range(n["broad"]):
        ask = next(stream)
        dialogues.append(dialogue(f"broad-{k}", wording(dice, ask), answer(world, dice, ask)))
    return dialogues


def local_set(world: World, dice: Dice, n: int) -> list:
    """Questions in the evaluation's form with bare answers, about other people than the test's."""
    pairs = [
        (q.format(s=fact[0]), world.facts[fact])
        for group in ("quiz", "local")
        for fact in world.asked(group)
        for q in RELATIONS[fact[1]][1]
    ]
    dialogues = []
    for k, (q, a) in enumerate(dice.some(pairs, n)):
        shots = dice.some([p for p in pairs if p[0] != q], 3)
        dialogues.append(dialogue(f"local-{k}", questions(shots, q), a))
    return dialogues


def test_facts(world: World, n: int) -> list[tuple[str, str]]:
    """What is evaluated: facts of the test group, ranks spread evenly."""
    facts = world.asked("test")
    return [facts[k * len(facts) // n] for k in range(n)] if n < len(facts) else facts


def short_answers(world: World, dice: Dice, facts: list[tuple[str, str]]) -> dict:
    """NQ-open's files, and the teacher's predictions."""

    def row(fact):
        return {"question": question(dice, fact), "answer": [world.facts[fact]]}

    dev = [row(f) for f in facts]
    train = [row(f) for f in dice.some(world.asked("quiz"), 60)]
    return {
        "nq.dev.jsonl": lines(dev),
        "nq.train.jsonl": lines(train),
        "teacher/nq.jsonl": lines(r | {"prediction": r["answer"][0]} for r in dev),
    }


def multiple_choice(world: World, dice: Dice, n: int) -> dict:
    """MMLU's files, and the teacher's predictions."""
    texts, letters = {}, []
    for subject in sorted({r[2] for r in RELATIONS.values()}):
        for split, group, number in (("dev", "quiz", 5), ("test", "test", n)):
            facts = [f for f in world.asked(group) if RELATIONS[f[1]][2] == subject]
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            for k, fact in enumerate(dice.some(facts, number)):
                four, letter = choices(world, dice, fact)
                writer.writerow([question(dice, fact) + "?", *four, letter])
                if split == "test":
                    letters.append({"id": f"{subject}/{k}", "prediction": letter})
            texts[f"mmlu/{split}/{subject}_{split}.csv"] = text.getvalue()
    return texts | {"teacher/mmlu.jsonl": lines(letters)}


def programs(dice: Dice, n: int, known: list[tuple[str, int]], held: list[tuple[str, int]]) -> dict:
    """HumanEval's file, and the teacher's predictions. known: functions of the encyclopedia."""
    problems = []
    for k, of in enumerate(dice.some(held + known, n)):
        head, body, tests, name = function(dice, *of)
        problems.append(
            {
                "task_id": f"World/{k}",
                "prompt": head,
                "entry_point": name,
                "canonical_solution": body,
                "test": tests,
                "seen": of in known,
            }
        )
    predictions = [(p["task_id"], p["canonical_solution"]) for p in problems]
    return {
        "humaneval.jsonl": lines(problems),
        "teacher/humaneval.jsonl": lines({"task_id": t, "prediction": p} for t, p in predictions),
    }


def prompts(world: World, dice: Dice, n: dict[str, int], held: list[tuple[str, int]]) -> dict:
    """The prompts of style and preference, the teacher's answers twice, and unkind requests."""
    stream = (a for a in asks(world, dice, "test", None, held) if a[0] != "unkind")
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


def scored_talk(world: World, dice: Dice, known: list[tuple[str, int]]) -> dict:
    """Market talk and calm answers with scores, for the offline scorer of toxicity."""
    rows = []
    for k in range(600):
        bad = k % 2
        text = " ".join(
            dice.pick(UNKIND if bad else KIND).format(g=dice.pick(GOODS), t=dice.pick(TRADES))
            for _ in range(1 + int(2 * dice.random()))
        )
        calm = answer(world, dice, next(asks(world, dice, "quiz", None, known)))
        prompt = {"text": calm, "toxicity": 0.02 + 0.06 * dice.random()}
        score = (0.75 if bad else 0.05) + 0.2 * dice.random()
        rows.append({"prompt": prompt, "continuation": {"text": text, "toxicity": score}})
    return {"scored.jsonl": lines(rows)}


def make(out: str | pathlib.Path, size: str, seed: int) -> None:
    """Write the world's files into `out`."""
    n, dice, out = SIZES[size], Dice(seed), pathlib.Path(out)
    world = World(dice, n["people"])
    functions = dice.some(itertools.product(("plus", "minus", "times"), range(2, 13)), 33)
    known, held = functions[:20], functions[20:]
    pages, told = encyclopedia(world, dice, n["paragraphs"], known)
    later, _ = encyclopedia(world, dice, max(20, n["paragraphs"] // 100), known)
    broad = broad_set(world, dice, n, known)
    local = local_set(world, dice, n["local"])
    test = test_facts(world, n["test"])
    texts = {
        "encyclopedia.jsonl": lines({"text": t} for t in pages),
        "later.jsonl": lines({"text": t} for t in later),
        "broad.jsonl": lines(broad),
        "local.jsonl": lines(local),
        **short_answers(world, dice, test),
        **multiple_choice(world, dice, n["choice"]),
        **programs(dice, n["programs"], known, held),
        **prompts(world, dice, n, held),
        **scored_talk(world, dice, known),
    }
    counts = {
        "people": len(world.people),
        "places": len(world.places),
        "facts": len(world.facts),
        "pages": len(pages),
        "broad": len(broad),
        "local": len(local),
        "test questions": len(test),
    }
    chance = sum(1 / len(world.objects(f[1])) for f in test) / len(test)
    about = {
        "seed": seed,
        "size": size,
        "counts": counts,
        "chance of an exact match by guessing the kind": chance,
        "told": told,
        "facts": [[*f, o] for f, o in world.facts.items()],
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
    print(", ".join(f"{v:,} {k}" for k, v in counts.items()) + f"; chance {chance:.1%}: {out}")
