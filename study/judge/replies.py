"""What a judge's reply says: two scores out of a review, or a choice between A, B and a tie.

    python -c "from study.judge import replies; print(replies.read_scores('8 9\\nBoth answers'))"

A reply that cannot be read for sure is None: it is counted, asked again by the next run, and never
taken for a tie. Every pattern here is bounded, so that its time is linear in the reply's length.
Left out: what the verdicts mean together (verdicts.py).
"""

import re
import unicodedata

THOUGHTS = ("think", "thinking", "reasoning")

NUMBER = r"(?<![\d.])(\d{1,2}(?:\.\d{1,4})?)(?!\d)"
OF_TEN = r"(?:[ \t]{0,4}(?:/|out of)[ \t]{0,4}10(?!\d))?"
PARTED = r"(?:[ \t]{0,8}[,;|&][ \t]{0,8}|[ \t]{1,8}(?:-|and|vs\.?)[ \t]{1,8}|[ \t]{1,8})"
TWO_NUMBERS = re.compile(rf"{NUMBER}{OF_TEN}{PARTED}{NUMBER}{OF_TEN}\.?")
ONE_NUMBER = re.compile(rf"{NUMBER}{OF_TEN}")
LABEL = re.compile(r"(?:final[ \t]{1,4})?scores?[ \t]{0,4}[:=]", re.IGNORECASE)
TUPLE = re.compile(
    r"(?:\b(?:tuple|scores?|output|result|answer)\b[^\n.]{0,200}?|^\W{0,8})"
    rf"\(\s{{0,4}}{NUMBER}\s{{0,4}},\s{{0,4}}{NUMBER}\s{{0,4}}\)",
    re.IGNORECASE | re.MULTILINE,
)
# "Assistant 1: 8/10", "**2**: 9", "Assistant A (8/10)", "Assistant B - 9 out of 10".
LINE = (
    r"(?:^|(?<=[.,;]\s)|(?<=and\s))\W{{0,8}}(?:Assistant\s{{1,4}})?{name}(?:'s)?"
    r"(?:\s{{1,4}}[Ss]core)?[*_]{{0,4}}(?:\s{{0,4}}:[*_]{{0,4}}|[ \t]{{1,4}}-[ \t]|[ \t]{{1,4}}\()"
    rf"[ \t]{{{{0,4}}}}{NUMBER.replace('{', '{{').replace('}', '}}')}"
    rf"{OF_TEN.replace('{', '{{').replace('}', '}}')}"
    r"(?=[ \t]{{0,4}}(?:$|[.(),;*–—-](?!\d)|and\b))"
)
# "Assistant 1 gets a score of 8", "Assistant 2's answer the overall score is 9".
SENTENCE = (
    r"Assistant\s{{1,4}}{name}(?:'s answer)?\s{{1,4}}"
    r"(?:(?:gets|receives|earns|has|deserves)\s{{1,4}})?(?:(?:a|the)\s{{1,4}})?"
    r"(?:overall\s{{1,4}})?score\s{{1,4}}(?:of|is)\s{{1,4}}"
    + NUMBER.replace("{", "{{").replace("}", "}}")
)
FIELD = r'"assistant[_ ]?{name}"\s{{0,4}}:\s{{0,4}}' + NUMBER.replace("{", "{{").replace("}", "}}")
# Who is meant, by number and by letter: a letter needs its "Assistant" before it.
FIRST, SECOND = r"(?:1|(?<=Assistant )A)", r"(?:2|(?<=Assistant )B)"
PAIRS = [
    tuple(re.compile(form.format(name=name), flags) for name in names)
    for form, names, flags in (
        (LINE, (FIRST, SECOND), re.MULTILINE),
        (SENTENCE, (FIRST, SECOND), 0),
        (FIELD, ("(?:1|a)", "(?:2|b)"), re.IGNORECASE),
    )
]


def spoken(text: str) -> str:
    """What a reply says after its thoughts, as plain characters; "" where a thought is cut off."""
    text = unicodedata.normalize("NFKC", text or "").replace("\ufeff", "")
    for name in THOUGHTS:
        text = text.rpartition(f"</{name}>")[2]
        if f"<{name}>" in text:
            return ""
    return text


def read_scores(text: str) -> tuple[float, float] | None:
    """(score of the first, of the second) in a review, 0 to 10, or None.

    Read from the first line, where it is nothing but two numbers ("8 9", "8.5/10, 9", "[[8, 9]]");
    else from the last tuple named as the scores; the last "Assistant 1: 8" and "Assistant 2: 9/10";
    "Assistant 1 a score of 10"; JSON's "assistant_1": 8; a last line of two numbers. Where two of
    these differ, there is no telling: None. Numbers of another kind (coordinates, steps of a
    calculation) are not scores.
    """
    text = spoken(text)
    lines = [line for line in text.splitlines() if line.strip()]
    pair = two_numbers(lines[0]) if lines else None
    if pair is None and len(lines) > 1:  # each on a line of its own
        alone = [ONE_NUMBER.fullmatch(unmarked(line)) for line in lines[:3]]
        if all(alone[:2]) and not all(alone[2:] or [None]):
            pair = float(alone[0][1]), float(alone[1][1])
    if pair is not None:
        return in_range(pair)
    pairs = {(float(m[1]), float(m[2])) for m in [*TUPLE.finditer(text)][-1:]}
    for first, second in PAIRS:
        both = first.findall(text), second.findall(text)
        if all(both):
            pairs.add((float(both[0][-1]), float(both[1][-1])))
    if not pairs and len(lines) > 1 and (last := two_numbers(lines[-1])):
        pairs.add(last)
    return in_range(pairs.pop()) if len(pairs) == 1 else None


def unmarked(line: str) -> str:
    """A line without emphasis, brackets, quotes and the word "Scores:"."""
    line = "".join(" " if c in "*_`[](){}\"'" else c for c in line).strip()
    label = LABEL.match(line)
    return line[label.end() :].strip() if label else line


def two_numbers(line: str) -> tuple | None:
    """The two numbers that a line is nothing but, or None."""
    pair = TWO_NUMBERS.fullmatch(unmarked(line))
    return (float(pair[1]), float(pair[2])) if pair else None


def in_range(pair: tuple[float, float]) -> tuple[float, float] | None:
    return pair if all(0 <= x <= 10 for x in pair) else None


# --- A, B or a tie ---

BRACKETS = re.compile(r"\[\[([^\[\]\n]{1,40})\]\]")
BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}\n]{1,40})\}")
CHOSEN = re.compile(r"\s{0,4}(?:(?:assistant|answer)\s{1,4})?(A|B|C|tie)\s{0,4}", re.IGNORECASE)
COMPARED = re.compile(r"\s{0,4}(A|B)\s?(>{1,2}|<{1,2}|={1,2})\s?(A|B)\s{0,4}", re.IGNORECASE)
PLAIN = re.compile(
    r"\W{0,8}(?:i\s(?:choose|pick|prefer|select)\s)?"
    r"(?:(?:the\s|my\s)?(?:final\s)?(?:verdict|answer|choice)\W{1,4}(?:is\W{1,4})?)?"
    r"(?:(?:assistant|answer|response)\s)?(A|B|C|(?:a\s)?tie)(?:\sis\s(?:the\s)?(?:better|best)"
    r"(?:\s(?:one|answer|response))?)?\W{0,8}",
    re.IGNORECASE,
)
NEGATED = re.compile(r"\bnot\b|n't\b|\bnever\b|\brather than\b|\binstead of\b", re.IGNORECASE)
VALUE = {"a": 1.0, "b": 0.0, "c": 0.5, "tie": 0.5, "a tie": 0.5}


def read_choice(text: str) -> float | None:
    """1.0 (A), 0.0 (B), 0.5 (a tie, or C) or None in a reply to the A/B/tie prompt.

    Read from the last [[A]] or [[A>B]], else the last \\boxed{A}, else a reply, or its last line,
    that says nothing but the choice ("Answer: B", "A is better"). A sentence that denies its last
    [[B]] is no telling: None.
    """
    text = spoken(text)
    marked = [*BRACKETS.finditer(text)] or [*BOXED.finditer(text)]
    if marked:
        before = text[max(0, marked[-1].start() - 300) : marked[-1].start()]
        sentence = re.split(r"[.!?\n]", before)[-1]
        return None if NEGATED.search(sentence) else value_of(marked[-1][1])
    last = text.strip().rpartition("\n")[2]
    for part in (text, last):
        if len(part) < 200 and (plain := PLAIN.fullmatch(" ".join(part.split()))):
            return VALUE[plain[1].lower()]
    return None


def value_of(mark: str) -> float | None:
    """What stands within the brackets: "A", "Assistant B", "tie", "A>>B"; None for others."""
    if chosen := CHOSEN.fullmatch(mark):
        return VALUE[chosen[1].lower()]
    if compared := COMPARED.fullmatch(mark):
        first, sign, second = compared[1].lower(), compared[2][0], compared[3].lower()
        if first != second:
            return 0.5 if sign == "=" else VALUE[first if sign == ">" else second]
    return None
