"""Markdown of a model as HTML that runs and fetches nothing."""

import re
import time

import pytest

from web import markdown

NASTY = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> ![p](http://evil/p.png) "
    "[l](javascript:alert(3)) [ok](https://example.org/) **bold** \n\n```html\n"
    '<b onclick="x">\n```\n'
)


def test_model_text_runs_and_fetches_nothing():
    shown = markdown.render(NASTY)
    assert (
        "<script" not in shown
        and "<img" not in shown
        and 'href="javascript' not in shown
        and 'onclick="' not in re.sub(r"<code>.*?</code>", "", shown, flags=re.S)
    )
    assert (
        "&lt;script&gt;" in shown
        and "[image: p]" in shown
        and "<strong>bold</strong>" in shown
        and 'href="https://example.org/"' in shown
        and "noopener" in shown
    )
    assert markdown.render(
        "<b>x</b>"
    ) == "<p>&lt;b&gt;x&lt;/b&gt;</p>\n" and "empty answer" in markdown.render(" \n")
    assert (
        set(
            re.findall(
                r"<(\w+)", markdown.render(NASTY * 3 + "> q\n\n1. a\n2. b\n\n|x|y|\n|-|-|\n|1|2|\n")
            )
        )
        <= markdown.TAGS
    )


@pytest.mark.parametrize("shape", ["[", "![", "[![a](", "> ", "- ", "|a"])
def test_markdown_of_200_000_characters_is_shown_at_once(shape):
    for n in (markdown.LONGEST_MARKDOWN, 200_000, 300_000):
        began = time.process_time()
        shown = markdown.render(shape * (n // len(shape)))
        assert time.process_time() - began < 3
        assert n <= markdown.LONGEST or "cut: 300000 characters" in shown


def test_links_have_no_title():
    assert "title" not in markdown.render('[a](https://example.org/ "what it says") ![b](c "d")')


def test_characters_that_turn_text_or_are_not_seen_are_shown_by_their_numbers():
    for hidden in "\u202e\u2066\u200b\u2060\ufeff\x1b\x9b\U000e0041":
        for text in (f"a{hidden}b", f"`a{hidden}b`", f"a&#x{ord(hidden):x};b"):
            shown = markdown.render(text)
            assert hidden not in shown, (hidden, text)
        assert f"U+{ord(hidden):04X}" in markdown.render(f"a{hidden}b")
    for kept in ("👩‍🚀", "می‌خواهم", "\u200fשלום\u200f", "क्‍ष", "a\tb", "❤️"):
        assert kept in markdown.render(f"`{kept}`"), ascii(kept)
