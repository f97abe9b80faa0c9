"""A conversation in the terminal: `python eval.py chat --model M`.

Answers are streamed. On a terminal lines can be edited and recalled (readline); from a pipe each
line is a message. Text comes from a model and is untrusted: control characters are shown.
"""

import codecs
import dataclasses
import sys

from decoding.opened import Opened
from decoding.records import Sampling
from host.terminal import printable, say

HELP = """\
/help            these commands
/reset           begin again (a system turn stays)
/system TEXT     a system turn in front of the conversation; without TEXT: none
/retry           another answer to the last message
/temperature X   0: the likeliest token
/quit            leave, as Ctrl-D does; Ctrl-C stops an answer"""


@dataclasses.dataclass
class Conversation:
    """What was said so far, and how the next answer is drawn."""

    model: Opened
    sampling: Sampling
    turns: list[dict] = dataclasses.field(default_factory=list)
    system: str = ""
    answers: int = 0  # each draws another sample

    def ids(self) -> list[int]:
        system = [{"from": "system", "value": self.system}] if self.system else []
        return self.model.chat_ids(system + self.turns)

    def command(self, line: str) -> bool:
        """Obey a line that begins with "/"; False where the conversation ends."""
        name, _, text = line.strip().partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/reset":
            self.turns = []
            say("a new conversation")
        elif name == "/system":
            self.system = text.strip()
            say("a system turn is in force" if self.system else "no system turn")
        elif name == "/temperature":
            self._set_temperature(text)
        elif name == "/retry" and any(turn["from"] == "human" for turn in self.turns):
            while self.turns[-1]["from"] != "human":
                self.turns.pop()
            self.reply()
        elif name == "/retry":
            say("there is no message to answer again")
        else:
            say(HELP if name == "/help" else f"{name} is no command: /help lists them")
        return True

    def _set_temperature(self, text):
        try:
            temperature = float(text)
            if not 0 <= temperature <= 100:
                raise ValueError
        except ValueError:
            return say("/temperature needs a number from 0 to 100, such as 0.7")
        self.sampling = dataclasses.replace(self.sampling, temperature=temperature)
        say(f"temperature {temperature:g}")

    def tell(self, line: str) -> None:
        """Add the human's message and answer it."""
        self.turns.append({"from": "human", "value": line})
        self.reply()

    def reply(self) -> None:
        """Stream the answer; the oldest turns go where the conversation has become too long."""
        positions = self.model.config.P
        room = positions - min(self.sampling.max_new, positions // 2)
        while len(ids := self.ids()) > room and len(self.turns) > 1:
            del self.turns[:2]
            say("(the beginning of the conversation no longer fits and is forgotten)")
        if len(ids) >= positions:
            say(
                f"(this message has {len(ids)} tokens, the model {positions} positions: it is not "
                "answered)"
            )
            self.turns.append({"from": "gpt", "value": ""})
            return
        answer = Stream(self.model.tok, ids)
        names = [self.answers]
        try:
            for _ in self.model.generate([ids], self.sampling, names=names, watch=answer.watch):
                pass
        except KeyboardInterrupt:
            pass
        print()
        self.answers += 1
        self.turns.append({"from": "gpt", "value": answer.text})


class Stream:
    """An answer that is printed as it grows."""

    def __init__(self, tok, ids):
        self.tok, self.last, self.sent, self.text = tok, ids[-1:], 0, ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def watch(self, prompt: int, sample: int, new: list[int]) -> None:
        head = self.tok.decode_bytes(self.last)
        raw = self.tok.decode_bytes([*self.last, *new])[len(head) :]
        piece = self.decoder.decode(raw[self.sent :])  # half a character waits for its other half
        self.sent, self.text = len(raw), self.text + piece
        print(printable(piece), end="", flush=True)


def converse(model: Opened, sampling: Sampling) -> None:
    """Read messages and commands until the end of the input."""
    terminal, template = sys.stdin.isatty(), model.need_template()
    if terminal:
        try:
            import readline  # noqa: F401  gives input() line editing and a history
        except ImportError:
            pass  # a Python without it: lines cannot be edited, all else works
    say(f"{model.path}, in the template: {template}")
    say("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    conversation = Conversation(model, sampling)
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if line.lstrip().startswith("/"):
            if not conversation.command(line):
                return
        elif line.strip():
            conversation.tell(line)
