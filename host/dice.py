"""Seeded draws that stay the same from version to version of Python.

For what is generated from a seed and must come out the same for ever: the embedded sample, the
invented world. Left out: distributions other than the uniform one.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Any


class Dice:
    """Draws from Random.random() alone: the one stream that Python promises to keep."""

    def __init__(self, seed: int):
        self.random = random.Random(seed).random

    def pick(self, items: Sequence) -> Any:
        """One item."""
        return items[int(self.random() * len(items))]

    def some(self, items: Iterable, n: int) -> list:
        """n different items, or all of them, in random order."""
        items = list(items)
        return [items.pop(int(self.random() * len(items))) for _ in range(min(n, len(items)))]
