"""ShareGPT-Mix: the paper's imitation data from raw downloads, every drop counted and shown.

    python -m study.curate mix --sharegpt FILE... --hc3 FILE... --discord FILE... --out DIR
    python -m study.curate mix --out DIR --sample 50       # a sheet for the manual review; filled in, it goes back as
    python -m study.curate mix --table DIR/sheet.csv       # ... and becomes Table 5

Writes DIR/mix.jsonl.gz (dialogues with a `source` field; train.py and data.py read it), report.json and report.html. The
same sources give the same bytes, whatever the number of workers. In this order a dialogue is joined from its pieces,
cleaned (upstream.py), and dropped where it has no answer, mentions ChatGPT (--drop-mentions), is not English
(language.py), or asks what an earlier kept one asked. HC3 repeats questions with several answers, as in the paper:
there only exact copies go. Left out: leakage into evaluation prompts (curate leakage), judging answers.
"""

import collections
import concurrent.futures
import csv
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import signal
import sys

import data
from study import language, mix_report, upstream
from tasks import results
from text import dialogues, tokenizer

SOURCES = ("sharegpt", "hc3", "discord")
# Koala's list, from its preprocessing
MENTIONS = ("openai", "chatgpt", "gpt-3", "chadgpt", "gpt3", "chat-gpt", "open-ai", "open ai")
SMALL = 4 << 20  # bytes below which starting workers takes longer than it saves
CHUNK = 1 << 19  # bytes of dialogues that a worker gets at once
COLUMNS = ("number", "id", "source", "turns", "query", "answer", "suggested", "category", "quality")


def flags(commands):
    """Adds the sub-commands mix and amounts to argparse's sub-parsers."""
    from study import amounts

    p = commands.add_parser(
        "mix", help="ShareGPT-Mix from raw downloads", description=__doc__.split("\n\n")[0]
    )
    g = p.add_argument_group("what is read")
    g.add_argument(
        "--sharegpt",
        nargs="+",
        default=[],
        metavar="FILE",
        help="ShareGPT files (JSON, JSON lines, .gz); Markdown or early HTML exports, pieces <id>_<n>",
    )
    g.add_argument(
        "--hc3",
        nargs="+",
        default=[],
        metavar="FILE",
        help="HC3 files; the ChatGPT answers are used, the people's are not",
    )
    g.add_argument(
        "--discord",
        nargs="+",
        default=[],
        metavar="FILE",
        help='JSON lines {"input", "output"} or DiscordChatExporter JSON of a bot channel',
    )
    g.add_argument(
        "--max-bad-rows",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of malformed rows of a file above which it is refused (default %(default)s)",
    )
    g = p.add_argument_group("what is dropped")
    g.add_argument(
        "--dedup",
        choices=("first", "all", "none"),
        default="first",
        help="same user query: the first one, or all of the dialogue's (default %(default)s); ShareGPT and Discord",
    )
    g.add_argument(
        "--drop-mentions",
        action="store_true",
        help=f"Koala's filter: drop dialogues that mention {', '.join(MENTIONS)}",
    )
    g.add_argument("--keep-languages", action="store_true", help="do not drop what is not English")
    g = p.add_argument_group("what is written")
    g.add_argument(
        "--out",
        metavar="DIR",
        help="folder for mix.jsonl.gz, report.json, report.html (and sheet.csv)",
    )
    g.add_argument(
        "--tokenizer",
        nargs="+",
        default=[],
        metavar="PATH",
        help="count tokens by these tokenizers",
    )
    g.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="write sheet.csv, N dialogues drawn for the manual review; without sources from the mix that is in --out",
    )
    g.add_argument("--seed", type=int, default=0, help="of the draw (default %(default)s)")
    g.add_argument(
        "--table",
        metavar="SHEET",
        help="print Table 5 from a sheet that was filled in, and do nothing else",
    )
    g.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one a core, one for little data)",
    )
    p.set_defaults(run=run)
    amounts.flags(commands)


def run(args):
    """The command; ValueError, one line, for what the user can mend."""
    if args.table:
        print(table(args.table))
        return
    if not args.out:
        raise ValueError("mix needs --out DIR to write to (or --table SHEET to read)")
    if args.sample is not None and args.sample < 1:
        raise ValueError(f"--sample {args.sample}: at least one dialogue has to be drawn")
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers {args.workers}: at least 1 process has to work")
    out, sources = (
        pathlib.Path(args.out),
        {s: getattr(args, s) for s in SOURCES if getattr(args, s)},
    )
    if args.sample:
        refuse_filled(out / "sheet.csv")
    if sources:
        report = build(
            sources,
            out,
            dedup=args.dedup,
            drop_mentions=args.drop_mentions,
            keep_languages=args.keep_languages,
            tokenizers=args.tokenizer,
            max_bad=args.max_bad_rows,
            workers=args.workers,
        )
        print(*mix_report.lines(report), f"in {out}", sep="\n")
    elif not (args.sample and (out / "mix.jsonl.gz").is_file()):
        raise ValueError(
            "mix needs --sharegpt, --hc3 or --discord files to read"
            + (f": {out} holds no mix.jsonl.gz to sample" if args.sample else "")
        )
    if args.sample:
        drawn, of = sample(out / "mix.jsonl.gz", out / "sheet.csv", args.sample, args.seed)
        print(
            f"{drawn} of {of:,} dialogues in {out / 'sheet.csv'}: fill in category (suggested by a rule) and quality (1 to 5), then give it to --table"
        )


# ---- the mix ---------------------------------------------------------------------------------------------------------


def build(
    sources,
    out,
    *,
    dedup="first",
    drop_mentions=False,
    keep_languages=False,
    tokenizers=(),
    max_bad=0.01,
    workers=None,
):
    """Writes the mix of {source: [paths]} and its report into `out`; returns the report (JSON values)."""
    out, size = pathlib.Path(out), 0
    names = token_names(tokenizers)  # a wrong tokenizer is named before an hour of work
    files = {s: dialogues.source_files(paths)[0] for s, paths in sources.items()}
    out.mkdir(parents=True, exist_ok=True)
    total = sum(f.stat().st_size for fs in files.values() for f in fs)
    stats = {s: mix_report.Stats(s, [f.name for f in fs], list(names)) for s, fs in files.items()}
    progress, before, units = data.Progress("reading", total, "bytes"), 0, []
    for source, paths in files.items():
        where = {}
        for file in paths:
            for d in upstream.read(
                file, source, stats[source].counts, max_bad, lambda at: progress(before + at)
            ):
                stats[source].counts["dialogues"] += 1
                row, piece = (
                    json.dumps(d, ensure_ascii=False).encode("utf-8", "surrogatepass"),
                    upstream.piece_of(d["id"]),
                )
                size += len(row)
                if source == "sharegpt" and piece and piece[0] in where:
                    units[where[piece[0]]][1].append(row)
                    continue
                if source == "sharegpt" and piece:
                    where[piece[0]] = len(units)
                units.append((source, [row]))
            before += file.stat().st_size
    progress.close()
    workers = workers or (os.cpu_count() if size >= SMALL else 1)
    options = (dedup, drop_mentions, keep_languages, tuple(map(str, names.values())))
    seen, progress, done = {}, data.Progress("cleaning", len(units), "dialogues"), 0
    beside = out / "mix.jsonl.gz.tmp"
    try:
        with (
            open(beside, "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as mix,
        ):
            for taken, result in _worked(_chunks(units), options, workers):
                for source, notes, found in result:
                    stats[source].notes.update(notes)
                    for item in found:
                        key = item.pop("key", None)
                        scope = (key, "hc3" if source == "hc3" else "")
                        if "why" not in item and key is not None and scope in seen:
                            item |= {
                                "why": "same user query as an earlier dialogue"
                                if source != "hc3"
                                else "exact copy of an earlier row",
                                "detail": f"as {seen[scope]}",
                            }
                        if "why" in item:
                            stats[source].drop(item)
                            continue
                        if key is not None:
                            seen[scope] = item["id"]
                        mix.write(item["line"] + b"\n")
                        stats[source].keep(item)
                done += taken
                progress(done)
            progress.close()
        report = mix_report.report(
            list(stats.values()),
            {
                "dedup": dedup,
                "drop_mentions": drop_mentions,
                "keep_languages": keep_languages,
                "max_bad_rows": max_bad,
                "tokenizers": list(names),
            },
        )
        with open(beside, "rb+") as f:
            os.fsync(f.fileno())
        results.write_beside(
            out / "report.json",
            json.dumps(report, indent=1, ensure_ascii=False).encode("utf-8", "replace").decode()
            + "\n",
        )
        results.write_beside(out / "report.html", mix_report.page(report))
        os.replace(beside, out / "mix.jsonl.gz")
    finally:
        beside.unlink(missing_ok=True)
    return report


def token_names(paths):
    """{name shown: path} of tokenizers; ValueError where one is none, or two have one name."""
    names = {}
    for path in paths:
        tokenizer.load(path)
        p = pathlib.Path(path)
        name = (p.parent.name if p.is_file() else p.name) or str(p)
        names[name if name not in names else str(p)] = p
    return names


def _chunks(units):
    """Lists of (source, pieces) of about CHUNK bytes; `units` is emptied on the way, which gives the memory back."""
    units.reverse()
    chunk, size = [], 0
    while units:
        chunk.append(units.pop())
        size += sum(map(len, chunk[-1][1]))
        if size >= CHUNK or not units:
            yield chunk
            chunk, size = [], 0


def _worked(chunks, options, workers):
    """(dialogues, results) of each chunk in order; few wait in memory."""
    if workers == 1:
        _start(*options)
        for chunk in chunks:
            yield len(chunk), _work(chunk)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, options
    )
    waiting = collections.deque()
    try:
        for chunk in chunks:
            waiting.append((len(chunk), pool.submit(_work, chunk)))
            if len(waiting) > 2 * workers + 1:
                taken, future = waiting.popleft()
                yield taken, future.result()
        while waiting:
            taken, future = waiting.popleft()
            yield taken, future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise ValueError(
            "a worker process was killed (for its memory, most likely): use --workers 1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(dedup, drop_mentions, keep_languages, tokenizers):
    global _options
    if multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _options = dedup, drop_mentions, keep_languages, [tokenizer.load(path) for path in tokenizers]


def _work(chunk):
    """[(source, notes, [item])] of [(source, pieces)]: item has id, query, and `why` or what is kept and counted."""
    out = []
    for source, rows in chunk:
        notes = collections.Counter()
        pieces = [json.loads(row.decode("utf-8", "surrogatepass")) for row in rows]
        out.append(
            (
                source,
                notes,
                [_judge(upstream.clean(d, notes), source) for d in upstream.join(pieces, notes)],
            )
        )
    return out


def _judge(dialogue, source):
    dedup, drop_mentions, keep_languages, toks = _options
    turns = dialogue["conversations"]
    asked = [t["value"] for t in turns if t["from"] == "human"]
    item = {"id": dialogue["id"], "query": asked[0][:300] if asked else ""}
    if not dialogues.has_answer(dialogue):
        return item | {
            "why": "no answer after a question",
            "detail": ", ".join(t["from"] for t in turns[:5]) or "no turns",
        }
    if drop_mentions:
        for turn in turns:
            low = turn["value"].lower()
            word = next((w for w in MENTIONS if w in low), None)
            if word:
                at = low.index(word)
                return item | {
                    "why": "mentions ChatGPT or OpenAI",
                    "detail": turn["value"][max(at - 40, 0) : at + 60],
                }
    if not keep_languages:
        english, other, script, _ = found = language.shares(dialogue)
        if not language.judged_english(found):
            return item | {
                "why": "not English",
                "detail": f"letters: {english:.0%} English, {other:.0%} other Latin, {script:.0%} other scripts",
            }
    topic = dialogue.pop("topic", None)
    if source == "hc3":  # several answers to a question stay
        key = "\0".join(t["value"] for t in turns) if dedup != "none" else None
    else:
        key = upstream.query_key(dialogue, dedup) if dedup != "none" else None
    if key is not None:
        key = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    line = json.dumps(
        {"id": dialogue["id"], "source": source, "conversations": turns}, ensure_ascii=False
    )
    try:
        line = line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can say it, UTF-8 cannot
        line = json.dumps({"id": dialogue["id"], "source": source, "conversations": turns}).encode()
    counted = []
    for tok in toks:
        ids, mask = data.tokenize_dialogue(dialogue, tok)
        counted.append((len(ids), int(mask.sum())))
    return item | {
        "line": line,
        "key": key,
        "turns": len(turns),
        "characters": sum(len(t["value"]) for t in turns),
        "tokens": counted,
        "category": mix_report.category(asked[0]) if source != "hc3" else f"HC3 {topic}",
    }


# ---- the manual review -----------------------------------------------------------------------------------------------


def read_mix(path):
    """The dialogues of a mix, one JSON object a line; ValueError, one line, for anything else."""
    path = pathlib.Path(path)
    path = path / "mix.jsonl.gz" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"{path} is not there: name a mix.jsonl.gz, or the folder that curate mix wrote"
        )
    for chunk, _ in dialogues.raw_chunks(path):
        for place, row in chunk:
            try:
                value = json.loads(row)
                assert isinstance(value["conversations"], list) and isinstance(value["id"], str)
            except (ValueError, TypeError, KeyError, AssertionError):
                raise ValueError(
                    f"{path} {place} is no dialogue of a mix: make the mix again"
                ) from None
            yield value


def refuse_filled(path):
    """ValueError where the sheet at `path` was filled in: a person's work is not written over."""
    if path.exists() and any(
        row["category"].strip() or row["quality"].strip() for row in read_sheet(path)
    ):
        raise ValueError(f"{path} is filled in already: move it, or name another --out")


def cell(value):
    """Text as a cell that a spreadsheet shows and never computes: = + - @ and control characters in front are defused."""
    value = "".join(c for c in str(value) if c in "\n\t" or c.isprintable())
    return (
        "'" + value
        if value.lstrip()[:1] in ("=", "+", "-", "@", "\t", "\uff1d", "\uff0b", "\uff0d", "\uff20")
        and value.strip()
        else value
    )


def sample(mix, path, n, seed):
    """Writes the sheet of n dialogues of a mix, drawn by the seed; returns (drawn, dialogues of the mix)."""
    total = sum(1 for _ in read_mix(mix))
    wanted = {int(i): k for k, i in enumerate(data.shuffled(total, seed, 3)[:n])}
    rows = []
    for i, d in enumerate(read_mix(mix)):
        if i in wanted:
            turn = {
                who: next((t["value"] for t in d["conversations"] if t["from"] == who), "")
                for who in ("human", "gpt")
            }
            clip = lambda t: t if len(t) <= 2000 else t[:2000] + " […]"
            rows.append(
                (
                    wanted[i],
                    d["id"],
                    d.get("source", ""),
                    len(d["conversations"]),
                    clip(turn["human"]),
                    clip(turn["gpt"]),
                    mix_report.category(turn["human"]),
                    "",
                    "",
                )
            )
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for k, row in enumerate(sorted(rows), 1):
        writer.writerow([cell(v) for v in (k, *row[1:])])
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(
        text.getvalue().encode("utf-8-sig", "replace")
    )  # the mark is what tells Excel that it is UTF-8
    os.replace(beside, path)
    return len(rows), total


def read_sheet(path):
    """The rows of a sheet as dicts; commas or semicolons (as spreadsheets of some countries save). ValueError, one line."""
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it as CSV UTF-8") from None
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): name the sheet that --sample wrote"
        ) from None
    head = text.split("\n", 1)[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        missing = [c for c in ("number", "category", "quality") if c not in (rows.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]}: name the sheet that --sample wrote"
            )
        return [{k: v or "" for k, v in row.items() if k} for row in rows]
    except csv.Error as error:
        raise ValueError(
            f"{path} is no CSV ({error}): name the sheet that --sample wrote"
        ) from None


def table(path):
    """Table 5 as text: of the dialogues reviewed, each category's count and share, and the mean quality."""
    groups, empty, grades = collections.defaultdict(list), 0, []
    for k, row in enumerate(read_sheet(path), 1):
        category, quality = (
            " ".join(row["category"].split()),
            row["quality"].strip().replace(",", "."),
        )
        if not category:
            empty += 1
            continue
        try:
            grade = float(quality) if quality else None
            if grade is not None and not 1 <= grade <= 5:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{path} row {k}: quality {quality[:20]!r} is not a number from 1 to 5: mend the cell"
            ) from None
        groups[category.casefold()].append((category, grade))
        grades.append(grade)
    if not groups:
        raise ValueError(
            f"{path} has no category filled in: fill the columns category and quality, then run again"
        )
    n, safe = len(grades), lambda t: "".join(c if c.isprintable() else " " for c in t)
    mean = lambda values: (
        f"{sum(v) / len(v):.2f}" if (v := [x for x in values if x is not None]) else "-"
    )
    lines = [f"{'category':<32}{'n':>5}{'share':>8}{'quality':>9}"]
    for group in sorted(groups.values(), key=lambda g: (-len(g), g[0][0].casefold())):
        lines.append(
            f"{safe(group[0][0])[:31]:<32}{len(group):>5}{len(group) / n:>8.1%}{mean(g for _, g in group):>9}"
        )
    lines.append(f"{'all':<32}{n:>5}{1:>8.0%}{mean(grades):>9}")
    return "\n".join(lines + ([f"{empty} rows without a category are left out"] if empty else []))


if __name__ == "__main__":
    print(__doc__)
    sys.exit(2)
