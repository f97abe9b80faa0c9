"""The upstream files of ShareGPT-Mix -> whole, clean dialogues: read, join pieces, clean, and name the user's query.

    python -m study.curate mix --sharegpt FILE... --hc3 FILE... --discord FILE... --out DIR      # is who uses it

ShareGPT and HC3 rows are read by dialogues.py. Discord is JSON lines {"input", "output"}, or what DiscordChatExporter
writes of a bot's channel (`-f Json`): {"guild", "channel", "messages": [{"id", "type", "content", "author": {"isBot"},
"reference": {"messageId"}}]}. Left out: which dialogues are kept (mix.py).
"""

import json
import re
import unicodedata

from study import html_text
from text import dialogues

PIECE = re.compile(r"(.+)_(\d{1,6})")
SHAREGPT_ID = re.compile(r"[A-Za-z0-9]{7}")
MOST_PIECES = 32  # pieces of one dialogue that are numbered one by one; more of them are the numbers of dialogues
SPOKEN = (
    "Default",
    "Reply",
)  # types of Discord messages that somebody wrote; a bot's answer to a slash command has another


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(path, source, counts, max_bad=0.01, progress=None):
    """Yields the dialogues of one file, {"id", "conversations"}; those of HC3 also have "topic".

    counts: a Counter that receives rows, malformed, and what is worth telling. Malformed rows are reported on stderr
    and skipped. ValueError, one line, for a file that cannot be read or has too many malformed rows.
    """
    for file in dialogues.source_files([path])[0]:
        malformed = dialogues.Malformed(file, max_bad)
        for chunk, at in dialogues.raw_chunks(file):
            bad, messages = [], counts["Discord messages"]
            for place, row in chunk:
                name = f"{file.name} {place}"
                try:
                    found = (
                        _discord(row, name, bad, counts)
                        if source == "discord"
                        else _row(row, name, source, counts)
                    )
                except ValueError as error:
                    bad.append((place, str(error)))
                    continue
                yield from found
            malformed.add(
                len(chunk) + counts["Discord messages"] - messages, bad
            )  # each message may be malformed
            counts.update({"rows": len(chunk), "malformed": len(bad)})
            if progress:
                progress(at)
        malformed.close()


def _object(row):
    """The row as parsed JSON, or as it is where parse_row has more to say about it."""
    if isinstance(row, dict):
        return row
    try:
        return json.loads(
            row.encode() if isinstance(row, str) else row
        )  # what is not UTF-8 fails here
    except (ValueError, RecursionError):
        return row


def _row(row, name, source, counts):
    value = _object(row)
    if isinstance(value, dict) and value.get("conversations") == []:
        return [{"id": str(value.get("id", name)), "conversations": []}]
    found = dialogues.parse_row(value if isinstance(value, dict) else row, name)
    if any("text" in d for d in found):
        raise ValueError("it is plain text, not a dialogue")
    if source == "hc3":
        if not found:
            counts["rows without a ChatGPT answer"] += 1
        topic = value.get("source") if isinstance(value.get("source"), str) else name.split(".")[0]
        found = [d | {"topic": topic} for d in found]
    return found


def _discord(row, name, bad, counts):
    value = _object(row)
    if (
        isinstance(value, dict)
        and isinstance(value.get("messages"), list)
        and ("channel" in value or "guild" in value)
    ):
        return _channel(value, name, bad, counts)
    if (
        isinstance(value, dict)
        and "input" in value
        and "output" in value
        and "instruction" not in value
    ):
        for key in ("input", "output"):
            if not isinstance(value[key], str):
                raise ValueError(f"{key} is {str(value[key])[:60]!r}, not a string")
        turns = [
            {"from": "human", "value": value["input"]},
            {"from": "gpt", "value": value["output"]},
        ]
        return [{"id": str(value.get("id", name)), "conversations": turns}]
    return _row(row, name, "discord", counts)


def _channel(export, name, bad, counts):
    """Dialogues of a bot's channel: an answer belongs to the message it replies to, else to the last one before it.

    A person's messages in a row are one query, a bot's are one answer (Discord cuts at 2,000 characters); a person who
    replies to the last answer of a dialogue goes on with it.
    """
    channel = export.get("channel") if isinstance(export.get("channel"), dict) else {}
    prefix = f"discord-{channel.get('id') or name}"
    counts["Discord messages"] += len(export["messages"])
    found, where = [], {}  # where: message id -> the dialogue whose last turn it is (part of)
    waiting, last = (
        None,
        None,
    )  # dialogue whose query stands unanswered just before; (author, dialogue) of the last message
    for number, message in enumerate(export["messages"], 1):
        author = message.get("author") if isinstance(message, dict) else None
        if not isinstance(author, dict) or not isinstance(message.get("content"), str):
            bad.append((f"{name} message {number}", "has no author or no content"))
            continue
        bot, text = author.get("isBot") is True, message["content"].strip()
        embeds = message.get("embeds") if isinstance(message.get("embeds"), list) else []
        if bot and not text:
            parts = [
                e["description"]
                for e in embeds
                if isinstance(e, dict) and isinstance(e.get("description"), str)
            ]
            text = "\n\n".join(parts).strip()
        if (
            not text
            or message.get("type", "Default") not in SPOKEN
            and not (bot and message.get("interaction"))
        ):
            counts["Discord messages without text, or by the system"] += 1
            continue
        reference = message.get("reference")
        to = where.get(str(reference.get("messageId"))) if isinstance(reference, dict) else None
        if not bot:
            for m in message.get("mentions") if isinstance(message.get("mentions"), list) else []:
                if (
                    isinstance(m, dict) and m.get("isBot") is True
                ):  # the address is not the question
                    names = [re.escape(str(m[k])) for k in ("nickname", "name") if m.get(k)]
                    text = re.sub(rf"\A@(?:{'|'.join(names)})[\s,:]*", "", text) if names else text
            turns = to["conversations"] if to else None
            if (
                last
                and last[0] == (False, author.get("id"))
                and not to
                and last[1]["conversations"][-1]["from"] == "human"
            ):
                dialogue = last[1]
                dialogue["conversations"][-1]["value"] += "\n" + text
            elif turns and turns[-1]["from"] == "gpt":
                dialogue = to
                turns.append({"from": "human", "value": text})
            else:
                dialogue = {
                    "id": f"{prefix}-{message.get('id', number)}",
                    "conversations": [{"from": "human", "value": text}],
                }
                found.append(dialogue)
            waiting = dialogue
        else:
            again = last and last[0] == (True, author.get("id")) and (to is None or to is last[1])
            if again:
                dialogue = last[1]
                dialogue["conversations"][-1]["value"] += "\n" + text
            else:
                slash = isinstance(
                    message.get("interaction"), dict
                )  # what was asked is not in the export
                dialogue = (
                    to
                    if isinstance(reference, dict) and reference.get("messageId")
                    else None
                    if slash
                    else waiting
                )
                if dialogue is None or dialogue["conversations"][-1]["from"] != "human":
                    counts["Discord bot messages whose question is not there"] += 1
                    last = None
                    continue
                dialogue["conversations"].append({"from": "gpt", "value": text})
                waiting = None if waiting is dialogue else waiting
        where[str(message.get("id"))] = dialogue
        last = ((bot, author.get("id")), dialogue)
    return found


# ---- pieces ----------------------------------------------------------------------------------------------------------


def piece_of(name):
    """(id of the dialogue, n) of a piece's id `<id>_<n>`, else None."""
    m = PIECE.fullmatch(name)
    return (m[1], int(m[2])) if m else None


def join(pieces, notes):
    """Pieces [dialogue] of one `<id>` -> whole dialogues, mostly one. notes: a Counter.

    n counts turns (FastChat cut long dialogues and named each piece by its first turn) or, where that does not fit,
    pieces. Equal pieces count once. Where pieces are missing between two, a gap, an answer that has lost its question is
    taken out: joined, it would become part of the answer before it. Other ids (not ShareGPT's seven letters) that number
    more than MOST_PIECES overlapping dialogues, such as identity_0 to identity_499, are no pieces.
    """
    if len(pieces) == 1:
        return pieces
    base, _ = piece_of(pieces[0]["id"])
    numbered = {}
    for piece in pieces:
        n = piece_of(piece["id"])[1]
        if n not in numbered:
            numbered[n] = piece
        elif numbered[n]["conversations"] == piece["conversations"]:
            notes["pieces that were there twice"] += 1
        else:
            return pieces  # two dialogues under one id: nothing says which pieces belong together
    ns = sorted(numbered)
    by_turn = all(a + len(numbered[a]["conversations"]) <= b for a, b in zip(ns, ns[1:]))
    if not by_turn and len(ns) > MOST_PIECES and not SHAREGPT_ID.fullmatch(base):
        return pieces
    turns = []
    for before, n in zip([None, *ns], ns):
        more = numbered[n]["conversations"]
        if before is not None:
            step = len(numbered[before]["conversations"]) if by_turn else 1
            if before + step != n:
                notes["gaps between pieces"] += 1
                if more and more[0]["from"] == "gpt":
                    notes["answers after a gap, without their question, taken out"] += 1
                    more = more[1:]
        turns = turns + more
    notes["pieces joined"] += len(ns)
    return [{**numbered[ns[0]], "conversations": turns}]


# ---- cleaning --------------------------------------------------------------------------------------------------------


def clean(dialogue, notes):
    """HTML -> Markdown, "Copy code" gone, empty turns gone, neighbours by one speaker merged (a blank line between)."""
    asked, turns, given = "", [], dialogue["conversations"]
    exported = any(
        "<" in t["value"] and html_text.is_export(t["value"], t["from"])
        for t in given
        if t["from"] == "gpt"
    )
    for turn in given:
        value = turn["value"]
        if turn["from"] == "human":
            value = html_text.pager(value) if exported else value
            asked += value + "\n"
        text = html_text.text(value, turn["from"], asked)
        notes["turns with HTML or 'Copy code' made Markdown"] += text != value
        if not text.strip():
            notes["empty turns taken out"] += 1
        elif turns and turns[-1]["from"] == turn["from"]:
            notes["turns merged with the one before"] += 1
            turns[-1]["value"] += "\n\n" + text
        else:
            turns.append({"from": turn["from"], "value": text})
    return {**dialogue, "conversations": turns}


def normalised(query):
    """A query for comparison: NFKC, case folded, white space collapsed, no closing . ? ! , ; : (C and C++ stay two)."""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split()).rstrip(".?!,;: …")


def query_key(dialogue, which):
    """What two dialogues with the same user query share, a str, or None. which: "first" query or "all" of them.

    A dialogue whose beginning is missing is compared by all its queries, and by the answer it opens with: its first
    query is often just "continue".
    """
    turns = [t for t in dialogue["conversations"] if t["from"] != "system"]
    asked = [normalised(t["value"]) for t in turns if t["from"] == "human"]
    if not asked:
        return None
    piece = piece_of(dialogue["id"])
    if turns[0]["from"] != "human":
        return "\0".join([turns[0]["value"], *asked])
    headless = piece and SHAREGPT_ID.fullmatch(piece[0]) and piece[1] > 0
    return "\0".join(asked) if which == "all" or headless else asked[0]
