"""Replies of judges in the forms that models give them: read right, or not at all; never slow."""

import time

import pytest

from study.judge import replies

SCORES = [
    ("**7 4**\nThe second is vague.", (7, 4)),
    ("`7 4`\nbecause", (7, 4)),
    ("7，4\n第一个更好", (7, 4)),
    ("Scores: 7 4\nThe first is better.", (7, 4)),
    ("Final scores = 7 4", (7, 4)),
    ("[[7]] [[4]]", (7, 4)),
    ("[7, 4]", (7, 4)),
    ("7; 4", (7, 4)),
    ("7 vs. 4", (7, 4)),
    ("7 - 4", (7, 4)),
    ("７ ４", (7, 4)),
    ("\ufeff7 4", (7, 4)),
    ("7 out of 10, 4 out of 10", (7, 4)),
    ("7\n4\nThe first is better.", (7, 4)),
    ("Assistant 1 (7/10)\nAssistant 2 (4/10)", (7, 4)),
    ("Assistant 1 - 7/10\nAssistant 2 - 4/10", (7, 4)),
    ("Assistant 1: 7 out of 10\nAssistant 2: 4 out of 10", (7, 4)),
    ("Assistant A: 7\nAssistant B: 4", (7, 4)),
    ("Assistant 1 gets a score of 7 and Assistant 2 gets a score of 4.", (7, 4)),
    ('{"assistant_1": 7, "assistant_2": 4.5}', (7, 4.5)),
    ("<think>\nmaybe 4 9\n</think>\n7 4\nBecause", (7, 4)),
    ("1. The first is right.\n2. The second is not.\n7 4", (7, 4)),
    ("7-4", None),
    ("<think>7 4", None),
    ("<think>\nAssistant 1: 7\nAssistant 2: 4", None),
    ("12 4", None),
    ("7 4 9", None),
    ("2019 2020", None),
    ("The years were 7 and 4.", None),
]


@pytest.mark.parametrize("text, pair", SCORES)
def test_scores_in_many_forms(text, pair):
    assert replies.read_scores(text) == pair


CHOICES = [
    ("[[Assistant B]]", 0.0),
    ("[[B>A]]", 0.0),
    ("[[B>>A]]", 0.0),
    ("[[A<B]]", 0.0),
    ("[[A=B]]", 0.5),
    ("[[A>A]]", None),
    ("\\boxed{B}", 0.0),
    ("\\boxed{\\text{tie}}", 0.5),
    ("B is better", 0.0),
    ("Assistant B is the better one.", 0.0),
    ("I choose B", 0.0),
    ("Both are fine, B more so.\nAnswer: B", 0.0),
    ("The verdict: a tie", 0.5),
    ("<think>[[A]]</think>[[B]]", 0.0),
    ("[[A]] it is. I would not take [[B]].", None),
    ("<think>[[A]] may be", None),
    ("<thinking>A</thinking> <think>[[A]]", None),
    ("B is better than one would think, yet A is longer", None),
]


@pytest.mark.parametrize("text, verdict", CHOICES)
def test_choices_in_many_forms(text, verdict):
    assert replies.read_choice(text) == verdict


N = 200_000
WORST = {
    "spaces": " " * N,
    "lines": "\n" * N,
    "stars": "*" * N,
    "dots": ". " * (N // 2),
    "names": "Assistant 1 " * (N // 12),
    "names and spaces": "Assistant 1" + " " * N,
    "scores": "score " * (N // 6),
    "parentheses": "(" * N,
    "half tuples": "answer (1," * (N // 10),
    "numbers": "1" * N,
    "pairs": "1 " * (N // 2),
    "brackets": "[" * N,
    "letters": "A" * N,
    "boxes": "\\boxed{" * (N // 7),
    "thoughts": "<think>" * (N // 7),
    "ligatures": "\ufdfa" * (N // 20),
}


@pytest.mark.parametrize("shape", WORST)
def test_200_000_characters_of_any_shape_take_no_time(shape):
    began = time.process_time()
    replies.read_scores(WORST[shape])
    replies.read_choice(WORST[shape])
    assert time.process_time() - began < 1
