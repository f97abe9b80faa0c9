"""A model's Markdown as HTML that runs and fetches nothing.

markdown-it without HTML makes the markup, nh3 lets through a short list of tags and http(s) links.
Characters that turn the text around them, or that nobody sees, are shown by their numbers. Left
out: highlighting of code, formulas.
"""

import functools
import html
import re
from typing import Any

TAGS = set(
    "p br hr em strong s code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 table thead tbody tr th td "
    "a".split()
)
# Controls; overrides and isolates of direction; invisible operators and tags. The joiners that
# emoji, Persian and Hindi need, and the marks of direction that reach no further than a word, stay.
HIDDEN = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u180e\u200b\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
LONGEST = 200_000  # characters of an answer that are shown
LONGEST_MARKDOWN = 20_000  # ... as Markdown: some shapes of it take a time that grows as a square


@functools.cache
def markdown() -> Any:
    """The renderer. Images become their words, so that nothing is fetched; HTML stays text."""
    from markdown_it import MarkdownIt

    md = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    md.enable(["table", "strikethrough"])

    def image(self, tokens, i, options, env):
        return f"[image: {html.escape(tokens[i].content)}]"

    md.add_render_rule("image", image)
    return md


def visible(text: str) -> str:
    """The text with its hidden characters written as U+202E."""
    return HIDDEN.sub(lambda c: f"U+{ord(c[0]):04X}", text)


def render(text: str) -> str:
    """A model's Markdown as HTML that runs and fetches nothing; what is very long as plain text."""
    import nh3

    if not text.strip():
        return "<p><em>(an empty answer)</em></p>"
    length, text = len(text), text[:LONGEST]
    if length <= LONGEST_MARKDOWN:
        shown = markdown().render(text)
    else:
        shown = f"<pre>{html.escape(text)}</pre>"
    if length > LONGEST:
        shown += f"<p><em>(cut: {length} characters)</em></p>"
    clean = nh3.clean(
        shown,
        tags=TAGS,
        attributes={"*": set(), "a": {"href"}, "ol": {"start"}},
        url_schemes={"http", "https"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
    return visible(clean)  # last: &#x202e; is one too
