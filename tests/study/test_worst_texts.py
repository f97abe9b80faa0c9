"""Text from anywhere takes a time linear in its length: 200,000 characters of each worst shape."""

import collections
import time

import pytest

from study import answers, style
from study.curate import html_text, language, leakage, upstream
from study.synthesize import pairs

N = 200_000
PAGE = '<div class="markdown prose">%s</div>'


def clean(text):
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": text}]
    return upstream.clean({"id": "x", "conversations": turns}, collections.Counter())


def shares(text):
    dialogue = {"conversations": [{"from": "human", "value": text}]}
    return language.shares(dialogue, lambda text: ("en", 1.0))


def last_turn(text):
    return answers.LAST_TURN.search(text) or answers.KOALA_TURN.search(text)


SHAPES = {  # what is made of it, and the shape
    "nested lists in a page": (clean, PAGE % ("<ul><li>" * (N // 20) + "</li></ul>" * (N // 20))),
    "nested elements": (clean, "<div>" * (N // 11) + "x" + "</div>" * (N // 11)),
    "unclosed elements": (clean, PAGE % ("<p>" * (N // 4))),
    "drawings": (clean, "<p>" + "<svg>" * (N // 12) + "</svg>" * (N // 12) + "</p>"),
    "half a tag": (html_text.text, "<p a" * (N // 4) + ">"),
    "comments": (html_text.text, "<!--" * (N // 4) + ">"),
    "blanks in a paragraph": (html_text.text, "<p>a" + " " * (N - 20) + "b</p>"),
    "code blocks without an end": (html_text.text, "x<pre><div><button" * (N // 18)),
    "blanks after a fence": (html_text.text, "```" + " " * N + "Copy code"),
    "words after a fence": (html_text.text, "```" + "a" * N + " Copy code"),
    "blanks around Copy code": (html_text.text, " " * N + "Copy code" + " " * N),
    "ats": (shares, "@" * N),
    "addresses": (shares, "a@" * (N // 2)),
    "ticks": (shares, "`a\n" * (N // 3)),
    "half tags": (shares, "<a" * (N // 2)),
    "blank lines": (leakage.is_code, "\n" * N),
    "blanks": (leakage.is_code, " " * N),
    "statements": (leakage.is_code, "a;\n\n" * (N // 4)),
    "verbs": (leakage.is_code, "write a " * (N // 8)),
    "a question and blanks": (pairs.parse, "q: x" + " " * N + "y"),
    "a mark and blanks": (pairs.parse, "q" + " " * N),
    "dashes": (pairs.parse, "-" * N),
    "blanks before an answer": (pairs.parse, "a" + " " * N + "*" * 100 + "A"),
    "rules": (style.has_list, "- " * (N // 2) + "x"),
    "numbers": (style.has_list, "1. " * (N // 3)),
    "quotation marks": (style.has_summary, "a\n\n! " + "'" * N),
    "sentences": (style.has_summary, "a\n\n" + ". " * (N // 2)),
    "turns": (last_turn, "<|user|>" * (N // 8)),
    "answers": (last_turn, "<|user|>" + "<|assistant|> " * (N // 14) + "x"),
    "Koala's turns": (last_turn, "USER: " + "GPT: " * (N // 5) + "x"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_200_000_characters_take_seconds_at_most_and_stop_nothing(shape):
    function, text = SHAPES[shape]
    began = time.process_time()
    function(text)
    assert time.process_time() - began < 3


def test_what_is_too_deep_or_too_long_for_a_page_stays_as_it_was():
    deep = PAGE % ("<ul><li>" * 60 + "x" + "</li></ul>" * 60)
    assert html_text.text(deep) == deep
    flat = PAGE % ("<ul><li>" * 20 + "x" + "</li></ul>" * 20)
    assert html_text.text(flat).strip() == "- " * 20 + "x"
    long = PAGE % ("<p>word</p>" * (html_text.LONGEST // 10))
    assert html_text.text(long) == long
