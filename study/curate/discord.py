"""A bot's channel, as DiscordChatExporter writes it (`-f Json`), -> dialogues.

Read is {"guild", "channel", "messages": [{"id", "type", "content", "author": {"isBot"},
"reference": {"messageId"}}]}. Used by upstream.py. Left out: attachments, threads' own channels.
"""

import re

# Types of messages that somebody wrote; a bot's answer to a slash command has another.
SPOKEN = ("Default", "Reply")


def dialogues_of(export: dict, name: str, bad: list[tuple[str, str]], counts: dict) -> list[dict]:
    """Dialogues of a bot's channel; `bad` receives (place, reason) of malformed messages.

    An answer belongs to the message it replies to, else to the last one before it. A person's
    messages in a row are one query, a bot's are one answer (Discord cuts at 2,000 characters); a
    person who replies to the last answer of a dialogue goes on with it.
    """
    channel = export.get("channel") if isinstance(export.get("channel"), dict) else {}
    reader = Channel(f"discord-{channel.get('id') or name}", counts)
    counts["Discord messages"] += len(export["messages"])
    for number, message in enumerate(export["messages"], 1):
        author = message.get("author") if isinstance(message, dict) else None
        if not isinstance(author, dict) or not isinstance(message.get("content"), str):
            bad.append((f"{name} message {number}", "has no author or no content"))
            continue
        reader.add(message, author, number)
    return reader.dialogues


def text_of(message: dict, bot: bool) -> str:
    """What a message says; a bot may say it in embeds alone."""
    text = message["content"].strip()
    embeds = message.get("embeds") if isinstance(message.get("embeds"), list) else []
    if bot and not text:
        parts = [e.get("description") for e in embeds if isinstance(e, dict)]
        text = "\n\n".join(p for p in parts if isinstance(p, str)).strip()
    return text


def without_address(text: str, message: dict) -> str:
    """A person's text without the "@Bot," it opens with: the address is not the question."""
    mentions = message.get("mentions") if isinstance(message.get("mentions"), list) else []
    for m in mentions:
        if isinstance(m, dict) and m.get("isBot") is True:
            names = [re.escape(str(m[k])) for k in ("nickname", "name") if m.get(k)]
            text = re.sub(rf"\A@(?:{'|'.join(names)})[\s,:]*", "", text) if names else text
    return text


class Channel:
    """The dialogues of a channel so far, and where the next message may belong.

    ending: message id -> the dialogue whose last turn it is (part of). waiting: the dialogue whose
    query stands unanswered just before. last: ((bot, author), dialogue) of the last message.
    """

    def __init__(self, prefix, counts: dict):
        self.prefix, self.counts = prefix, counts
        self.dialogues, self.ending, self.waiting, self.last = [], {}, None, None

    def add(self, message: dict, author: dict, number: int) -> None:
        """One message, in the order of the export."""
        bot = author.get("isBot") is True
        text = text_of(message, bot)
        spoken = message.get("type", "Default") in SPOKEN or (bot and message.get("interaction"))
        if not text or not spoken:
            self.counts["Discord messages without text, or by the system"] += 1
            return
        reference, speaker = message.get("reference"), (bot, author.get("id"))
        replied = None
        if isinstance(reference, dict):
            replied = self.ending.get(str(reference.get("messageId")))
        if bot:
            dialogue = self._answer(text, message, speaker, replied)
        else:
            text = without_address(text, message)
            dialogue = self._query(text, message.get("id", number), speaker, replied)
        if dialogue is None:
            self.counts["Discord bot messages whose question is not there"] += 1
            self.last = None
            return
        self.ending[str(message.get("id"))] = dialogue
        self.last = speaker, dialogue

    def _query(self, text, name, speaker, replied):
        """The dialogue that a person's message opens or goes on with."""
        turns = replied["conversations"] if replied else None
        same = self.last and self.last[0] == speaker and not replied
        if same and self.last[1]["conversations"][-1]["from"] == "human":
            dialogue = self.last[1]
            dialogue["conversations"][-1]["value"] += "\n" + text
        elif turns and turns[-1]["from"] == "gpt":
            dialogue = replied
            turns.append({"from": "human", "value": text})
        else:
            turns = [{"from": "human", "value": text}]
            dialogue = {"id": f"{self.prefix}-{name}", "conversations": turns}
            self.dialogues.append(dialogue)
        self.waiting = dialogue
        return dialogue

    def _answer(self, text, message, speaker, replied):
        """The dialogue that a bot's message answers; None where its question is not there."""
        same = self.last and self.last[0] == speaker
        if same and (replied is None or replied is self.last[1]):
            dialogue = self.last[1]
            dialogue["conversations"][-1]["value"] += "\n" + text
            return dialogue
        reference, dialogue = message.get("reference"), self.waiting
        if isinstance(reference, dict) and reference.get("messageId"):
            dialogue = replied
        elif isinstance(message.get("interaction"), dict):
            dialogue = None  # what a slash command asked is not in the export
        if dialogue is None or dialogue["conversations"][-1]["from"] != "human":
            return None
        dialogue["conversations"].append({"from": "gpt", "value": text})
        if self.waiting is dialogue:
            self.waiting = None
        return dialogue
