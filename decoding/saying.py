"""The text of a sample as its ids come: what stop strings leave of it, and what may be shown."""

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from text.tokenizer import Tokenizer


class Saying:
    """The text that ids add to a prompt, one id at a time.

    It equals records.completion's of all ids. An id is decoded behind the one before it, so that a
    space between them stays.
    """

    def __init__(self, tok: "Tokenizer", prompt: list[int], stops: tuple = ()):
        self.tok, self.last, self.stops = tok, prompt[-1:], stops
        self.longest = max(map(len, stops), default=0)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.said = ""  # whole characters
        self.cut: int | None = None  # where the first stop string begins

    def add(self, new: int) -> bool:
        """One id more -> whether a stop string is complete."""
        head = self.tok.decode_bytes(self.last)
        raw = self.tok.decode_bytes([*self.last, new])[len(head) :]
        self.last = [new]
        begin = max(len(self.said) - self.longest + 1, 0)
        self.said += self.decoder.decode(raw)
        ends = (self.said.find(s, begin) for s in self.stops)
        self.cut = min((at for at in ends if at >= 0), default=None)
        return self.cut is not None

    @property
    def text(self) -> str:
        """All of it, cut before the first stop string; half a character at its end as U+FFFD."""
        if self.cut is not None:
            return self.said[: self.cut]
        return self.said + self.decoder.getstate()[0].decode("utf-8", "replace")

    @property
    def safe(self) -> int:
        """How many characters may be shown while more ids may come.

        Left out are half a character and the beginning of a stop string that may yet complete.
        """
        if self.cut is not None:
            return self.cut
        for held in range(min(self.longest - 1, len(self.said)), 0, -1):
            if any(s.startswith(self.said[-held:]) for s in self.stops):
                return len(self.said) - held
        return len(self.said)
