"""Text that grows id by id is the text of all ids, and never takes back what it has shown.

python -m pytest tests/decoding/test_saying.py
"""

import random

import pytest

from decoding.records import shared_length
from decoding.reference import completion
from decoding.saying import Saying

PIECES = [b" a", b"b", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\x98\x80", b" ", b"ab", b"\xff", b"ba"]


class Pieces:
    def decode_bytes(self, ids):
        return b"".join(PIECES[i] for i in ids)


@pytest.mark.parametrize("stops", [(), ("ab ",), ("ba€", "b b", "aa"), ("€", "aba")])
def test_text_equals_completions_and_shows_only_what_stays(stops):
    dice = random.Random(len(stops))
    for _ in range(200):
        ids = [dice.randrange(10) for _ in range(dice.randrange(1, 30))]
        saying, shown = Saying(Pieces(), [0], stops), ""
        for k in range(1, len(ids) + 1):
            cut = saying.add(ids[k - 1])
            assert (saying.text, cut) == completion(Pieces(), [0], ids[:k], stops)
            safe = saying.said[: saying.safe]
            assert safe.startswith(shown)
            shown = safe
            if cut:
                break
        text, _ = completion(Pieces(), [0], ids, stops)
        assert text.startswith(shown)
        if not stops:
            held = len(text) - len(shown)
            assert held <= 3 and set(text[len(shown) :]) <= {"\ufffd"}


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 700])
def test_a_shared_beginning_is_as_long_as_it_is(size):
    a = list(range(size))
    assert shared_length(a, a) == size
    assert shared_length(a, [*a, 5]) == shared_length([*a, 6], [*a, 5]) == size
    if size > 1:
        assert shared_length(a, [*a[: size - 1], -1]) == size - 1
        assert shared_length(a, [-1, *a[1:]]) == 0
