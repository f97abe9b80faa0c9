"""What the report of the preset real says of its base, its data and its rate; and the minutes.

    python -m study.grid --preset real ...      # what prints and writes them

Read are the head of a GGUF file and what the steps before left; no model is opened. Left out: what
was found (study.report).
"""

import collections
import json
import math
import pathlib
import re

from host import files, terminal
from study.report.points import count_of
from tasks import mmlu
from text import gguf_header

GFLOPS = 140.0  # of two cores, float32, --jobs 2: 190 in training, 130 in measuring
PAIR_TOKENS = 30  # of a pair of NQ-open in ChatML, about
# Tokens that an item of a task costs, prompt and answer, about; of a model of 135M that talks on.
ITEM_TOKENS = {"nq": 30, "nq0": 60, "mmlu": 120, "humaneval": 450, "style": 250, "toxicity": 35}
# ggml's types of most weights of a file -> how it is called, bits a weight.
KINDS = {
    0: ("float32", 32),
    1: ("float16", 16),
    2: ("Q4_0", 4),
    3: ("Q4_1", 4),
    8: ("Q8_0", 8),
    12: ("Q4_K", 4),
    13: ("Q5_K", 5),
    14: ("Q6_K", 6),
    30: ("bfloat16", 16),
}


def named_base(text: str) -> tuple[str, str]:
    """ "NAME=PATH" or "PATH" -> (name, path); the name is the file's where none is given."""
    name, is_named, path = text.partition("=")
    if not is_named:
        name, path = pathlib.Path(text.rstrip("/")).name.removesuffix(".gguf"), text
    if not path or not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(
            f"--base {text}: write NAME=PATH, the name of letters, digits, dots and dashes"
        )
    return name, path


# --- the base ---


def head_of(path: str) -> gguf_header.Header | None:
    """The head of a GGUF file; None for another form, or where nothing is there."""
    file = pathlib.Path(path)
    return gguf_header.read(file) if file.is_file() and gguf_header.is_gguf(file) else None


def weights(name: str, path: str) -> float | None:
    """How many weights a base has: by its head, or by its name; None where neither says."""
    head = head_of(path)
    if head:
        return float(sum(math.prod(t.shape) for t in head.tensors.values()))
    size = re.search(r"(\d+(?:\.\d+)?[kKmMbB])$", name)
    return count_of(size[1]) if size else None


def about_base(name: str, path: str) -> list[str]:
    """What is plain to see of a base: whether it was taught to chat, how its weights are stored."""
    head = head_of(path)
    if head is None:
        return [f"The base is {name} ({pathlib.Path(path).name})."]
    types = collections.Counter()
    for tensor in head.tensors.values():
        types[tensor.type] += math.prod(tensor.shape)
    kind, bits = KINDS.get(types.most_common(1)[0][0], ("of another kind", 0))
    stored = f"{bits}-bit ({kind})" if bits else kind
    own = head.metadata.get("general.name", pathlib.Path(path).name)
    lines = [f'The base is {name}, "{own}" by its file. Most of its weights are {stored} there.']
    if "tokenizer.chat_template" in head.metadata:
        lines.append(
            "It brings a chat template: it is an instruct model, finetuned on answers already. The "
            "paper's bases were not, so less is left here for imitation to teach."
        )
    return lines


# --- the data ---


def lines(study) -> list[str]:
    """The base, the data as far as it is there, the rate, and how models were asked."""
    said = about_base(study.base, study.path)
    said += amounts(study) + pairs(study) + rate(study.rate)
    said.append(
        f"All models, the base too, are asked in the template {study.args.template} without a "
        "system turn."
    )
    if study.args.limit:
        said.append(f"Only a part was asked: --limit {' '.join(study.args.limit)}.")
    return said


def record(path: str | pathlib.Path) -> dict:
    """A JSON file that a step leaves; {} where it is not there yet."""
    return files.read_json(path) if pathlib.Path(path).is_file() else {}


def amounts(study) -> list[str]:
    said, clear = [], record(f"{study.data('decontaminated')}/report.json")
    if clear:
        gone = clear["dialogues"] - clear["kept"]
        said.append(
            f"Of {clear['dialogues']:,} dialogues {gone:,} were dropped, since a query of theirs "
            f"has a BLEU above {clear['threshold']:g} % against one of "
            f"{sum(clear['prompts'].values()):,} evaluation prompts."
        )
    for amount in study.args.amounts:
        split = packed(study, f"broad-{amount}", "train")
        if split:
            said.append(
                f"Broad imitation, {amount}: {split['dialogues']:,} dialogues, "
                f"{split['tokens']:,} tokens, {split['loss_tokens']:,} of them learned."
            )
    if study.args.plain:
        said.append(
            f"Mixed imitation: {study.args.amounts[-1]}, and as many rows of plain text "
            f"({pathlib.Path(study.args.plain).name})."
        )
    held = packed(study, "heldout", "train")
    if held:
        of = " of ShareGPT" if study.args.sharegpt else ""
        said.append(
            f"Held out are {held['dialogues']:,} dialogues{of} with {held['loss_tokens']:,} tokens "
            "of answers."
        )
    return said


def packed(study, name: str, split: str) -> dict:
    """The counts of a split of a packed directory; {} where it is not there yet."""
    return record(f"{study.data(name)}/pack.json").get("splits", {}).get(split, {})


def pairs(study) -> list[str]:
    drawn, split = record(f"{study.data('pairs')}/report.json"), packed(study, "local", "train")
    if not (study.local and drawn and split):
        return []
    return [
        f"Local imitation: {drawn['pairs']:,} questions of Natural Questions' training file with "
        f"their answers, {split['tokens']:,} tokens. The answers are people's, a perfect teacher, "
        "where the paper had ChatGPT's.",
        f"{drawn['near']:,} questions were dropped before the draw, with a BLEU above "
        f"{drawn['threshold']:g} % against a question that is asked.",
    ]


def rate(path: str) -> list[str]:
    chosen = record(path)
    if not chosen:
        return []
    tried = ", ".join(f"{c['lr']:g} ({c['nats_per_token']:.4f})" for c in chosen["candidates"])
    return [
        f"The learning rate is {chosen['lr']:g}: the one of least loss on the held-out dialogues, "
        f"in nats a token, of {tried}. It was chosen before any benchmark was asked."
    ]


# --- the minutes ---


def minutes(study, steps: list) -> list[str]:
    """About how long all steps take, a line; a base of unknown size has none."""
    size, a = weights(study.base, study.path), study.args
    if not size:
        return []
    broad = [terminal.count(x) for x in a.amounts]
    trained = sum(broad) - broad[len(broad) // 2] + len(a.rates) * broad[len(broad) // 2]
    trained += 2 * broad[-1] * bool(a.plain) + a.pairs * 48 * study.local
    models = 1 + len(broad) + study.local + bool(a.plain)
    asked = sum(n * ITEM_TOKENS[task] for task, n in items(study).items())
    asked += 2 * terminal.count(a.wikitext_tokens) * bool(a.wikitext)
    held = 1500 * a.held_out * (models + len(a.rates))
    train, ask = (
        f * size / 1e9 / a.gflops / 60 for f in (6 * trained, 2 * (asked * models + held))
    )
    return [
        f"about {train + ask:.0f} minutes at {a.gflops:g} GFLOP/s (--gflops): {train:.0f} for "
        f"{trained:,} tokens of training, {ask:.0f} for measuring {models} models; {len(steps)} "
        "steps"
    ]


def items(study) -> dict[str, int]:
    """{task: items that are asked} of the files that are there."""
    a, found = study.args, {}
    sources = {"nq": a.nq_dev, "nq0": a.nq_dev, "humaneval": a.humaneval, "style": a.prompts}
    sources |= {"toxicity": a.toxicity_prompts}
    limits = dict(text.split("=") for text in a.limit)
    for task in study.wanted.tasks:
        most = int(limits.get(task, 10**9))
        if task == "mmlu" and pathlib.Path(a.mmlu, "test").is_dir():
            each = (len(mmlu.read_questions(a.mmlu, "test", s)) for s in subjects(a.mmlu))
            found[task] = sum(min(n, most) for n in each)
        elif task in sources and pathlib.Path(sources[task]).is_file():
            found[task] = min(rows_in(sources[task]), most)
    return found


def subjects(folder: str) -> list[str]:
    return mmlu.list_subjects(folder, "test")


def rows_in(path: str) -> int:
    """Rows of a file of JSON lines or of one JSON list."""
    from tasks import inputs

    text = inputs.text_of(path)
    return len(json.loads(text)) if text.lstrip()[:1] == "[" else len(text.split("\n")) - 1
