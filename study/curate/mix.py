"""ShareGPT-Mix: the paper's imitation data from raw downloads, every drop counted and shown.

    python -m study.curate mix --sharegpt FILE... --hc3 FILE... --discord FILE... --out DIR

Writes DIR/mix.jsonl.gz (dialogues with a `source` field; train.py and data.py read it), report.json
and report.html. The same sources give the same bytes, whatever the number of workers. In this order
a dialogue is joined from its pieces, cleaned (upstream.py), and dropped where it has no answer,
mentions ChatGPT (--drop-mentions), is not English (language.py), or asks what an earlier kept one
asked. HC3 repeats questions with several answers, as in the paper: there only exact copies go.
Left out: leakage into evaluation prompts (leakage.py), the manual review (sheet.py).
"""

import collections
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import data
from host import files, terminal, workers
from study import rows
from study.curate import MENTIONS, SMALL, language, mix_report, sheet, upstream
from text import dialogues, tokenizer
from text.sources import source_files

SOURCES = ("sharegpt", "hc3", "discord")
CHUNK = 1 << 19  # bytes of dialogues that a worker gets at once


class Rules(NamedTuple):
    """What is dropped. dedup: "first" user query, "all" of a dialogue's, or "none"."""

    dedup: str = "first"
    drop_mentions: bool = False
    keep_languages: bool = False


def run(
    sources: dict[str, list],
    out: str | pathlib.Path,
    rules: Rules,
    tokenizers: Iterable[str | pathlib.Path],
    max_bad: float,
    processes: int | None,
    review: sheet.Draw | None,
) -> None:
    """The command: build the mix of {source: paths}, draw the sheet where `review` says so."""
    out = pathlib.Path(out)
    if processes is not None and processes < 1:
        raise ValueError(f"--workers {processes}: at least 1 process has to work")
    if review:
        sheet.refuse_filled(out / "sheet.csv")
    if sources:
        report = build(sources, out, rules, tokenizers, max_bad, processes)
        print(*mix_report.lines(report), f"in {out}", sep="\n")
    elif not (review and (out / "mix.jsonl.gz").is_file()):
        missing = f": {out} holds no mix.jsonl.gz to sample" if review else ""
        raise ValueError(f"mix needs --sharegpt, --hc3 or --discord files to read{missing}")
    if review:
        drawn, total = sheet.sample(out / "mix.jsonl.gz", out / "sheet.csv", review)
        print(
            f"{drawn} of {total:,} dialogues in {out / 'sheet.csv'}: fill in category (suggested "
            "by a rule) and quality (1 to 5), then give it to --table"
        )


def build(
    sources: dict[str, list],
    out: str | pathlib.Path,
    rules: Rules,
    tokenizers: Iterable[str | pathlib.Path] = (),
    max_bad: float = 0.01,
    processes: int | None = None,
) -> dict:
    """Writes the mix of {source: [paths]} and its report into `out`; returns the report."""
    out = pathlib.Path(out)
    names = token_names(tokenizers)  # a wrong tokenizer is named before an hour of work
    paths = {s: source_files(given)[0] for s, given in sources.items()}
    stats = {s: mix_report.Stats(s, [f.name for f in fs], list(names)) for s, fs in paths.items()}
    with rows.locked(out):
        units, size = _read(paths, stats, max_bad)
        processes = processes or (os.cpu_count() if size >= SMALL else 1)
        options = (rules, tuple(map(str, names.values())))
        with rows.gzip_whole(out / "mix.jsonl.gz") as stream:
            _write(stream, units, stats, options, processes)
            report = mix_report.report(
                list(stats.values()),
                {**rules._asdict(), "max_bad_rows": max_bad, "tokenizers": list(names)},
            )
            text = json.dumps(report, indent=1, ensure_ascii=False)
            files.write_whole(out / "report.json", text.encode("utf-8", "replace") + b"\n")
            files.write_whole(out / "report.html", mix_report.page(report))
    return report


def token_names(paths: Iterable[str | pathlib.Path]) -> dict:
    """{name shown: path} of tokenizers; ValueError where one is none, or two have one name."""
    names = {}
    for path in paths:
        tokenizer.load(path)
        p = pathlib.Path(path)
        name = (p.parent.name if p.is_file() else p.name) or str(p)
        names[name if name not in names else str(p)] = p
    return names


def _read(paths, stats, max_bad):
    """([(source, [rows of its pieces as JSON])], their bytes) of all sources."""
    total = sum(f.stat().st_size for given in paths.values() for f in given)
    progress, before, units, size = terminal.Progress("reading", total, "bytes"), 0, [], 0
    for source, given in paths.items():
        unit_of = {}  # a ShareGPT dialogue's id -> the place of its unit
        for file in given:
            reading = upstream.read(
                file, source, stats[source].counts, max_bad, lambda at, b=before: progress(b + at)
            )
            for dialogue in reading:
                stats[source].counts["dialogues"] += 1
                row = json.dumps(dialogue, ensure_ascii=False).encode("utf-8", "surrogatepass")
                size += len(row)
                piece = dialogues.piece_of(dialogue["id"]) if source == "sharegpt" else None
                if piece and piece[0] in unit_of:
                    units[unit_of[piece[0]]][1].append(row)
                    continue
                if piece:
                    unit_of[piece[0]] = len(units)
                units.append((source, [row]))
            before += file.stat().st_size
    progress.close()
    return units, size


def _write(stream, units, stats, options, processes):
    """Clean and judge the units, and write what is kept; `stats` counts all of them."""
    seen, done = {}, 0
    progress = terminal.Progress("cleaning", len(units), "dialogues")
    results = workers.ordered(_work, _chunks(units), processes, _start, options)
    for taken, judged in results:
        for source, notes, items in judged:
            stats[source].notes.update(notes)
            for item in items:
                _keep_or_drop(item, source, seen, stats[source], stream)
        done += taken
        progress(done)
    progress.close()


def _keep_or_drop(item, source, seen, stats, stream):
    key = item.pop("key", None)
    scope = (key, "hc3" if source == "hc3" else "")
    if "why" not in item and key is not None and scope in seen:
        why = "same user query as an earlier dialogue"
        if source == "hc3":
            why = "exact copy of an earlier row"
        item |= {"why": why, "detail": f"as {seen[scope]}"}
    if "why" in item:
        stats.drop(item)
        return
    if key is not None:
        seen[scope] = item["id"]
    stream.write(item["line"])
    stats.keep(item)


def _chunks(units):
    """Lists of (source, pieces) of about CHUNK bytes; empties `units`, which gives memory back."""
    units.reverse()
    chunk, size = [], 0
    while units:
        chunk.append(units.pop())
        size += sum(map(len, chunk[-1][1]))
        if size >= CHUNK or not units:
            yield chunk
            chunk, size = [], 0


def _start(rules, tokenizers):
    global _rules, _tokenizers
    _rules, _tokenizers = rules, [tokenizer.load(path) for path in tokenizers]


def _work(chunk):
    """(units, [(source, notes, [item])]) of [(source, pieces)].

    An item has id, query, and `why` and `detail` of its drop, or what is kept and counted.
    """
    judged = []
    for source, encoded in chunk:
        notes = collections.Counter()
        pieces = [json.loads(row.decode("utf-8", "surrogatepass")) for row in encoded]
        joined = upstream.join(pieces, notes)
        judged.append((source, notes, [_judge(upstream.clean(d, notes), source) for d in joined]))
    return len(chunk), judged


def _judge(dialogue, source):
    turns = dialogue["conversations"]
    queries = [t["value"] for t in turns if t["from"] == "human"]
    item = {"id": dialogue["id"], "query": queries[0][:300] if queries else ""}
    reason = _why_dropped(dialogue, _rules)
    if reason:
        return item | {"why": reason[0], "detail": reason[1]}
    topic = dialogue.pop("topic", None)
    kept = {"id": dialogue["id"], "source": source, "conversations": turns}
    tokens = []
    for tok in _tokenizers:
        ids, mask = data.tokenize_dialogue(dialogue, tok)
        tokens.append((len(ids), int(mask.sum())))
    return item | {
        "line": rows.json_line(kept),
        "key": _copy_key(dialogue, source, _rules.dedup),
        "turns": len(turns),
        "characters": sum(len(t["value"]) for t in turns),
        "tokens": tokens,
        "category": mix_report.category(queries[0]) if source != "hc3" else f"HC3 {topic}",
    }


def _why_dropped(dialogue, rules):
    """(reason, detail), or None where the dialogue is kept."""
    turns = dialogue["conversations"]
    if not dialogues.has_answer(dialogue):
        speakers = ", ".join(t["from"] for t in turns[:5])
        return "no answer after a question", speakers or "no turns"
    for turn in turns if rules.drop_mentions else ():
        low = turn["value"].lower()
        word = next((w for w in MENTIONS if w in low), None)
        if word:
            at = low.index(word)
            return "mentions ChatGPT or OpenAI", turn["value"][max(at - 40, 0) : at + 60]
    if not rules.keep_languages:
        shares = language.shares(dialogue)
        if not language.judged_english(shares):
            english, other, script, _ = shares
            return "not English", (
                f"letters: {english:.0%} English, {other:.0%} other Latin, "
                f"{script:.0%} other scripts"
            )
    return None


def _copy_key(dialogue, source, dedup):
    """What an earlier dialogue of the same query shares, as a digest; None: never a copy."""
    if dedup == "none":
        return None
    if source == "hc3":  # several answers to a question stay
        key = "\0".join(t["value"] for t in dialogue["conversations"])
    else:
        key = upstream.query_key(dialogue, dedup)
    if key is None:
        return None
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
