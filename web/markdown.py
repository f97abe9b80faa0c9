"""A model's Markdown as HTML that runs and fetches nothing.

markdown-it without HTML makes the markup, nh3 lets through a short list of tags and http(s) links.
Left out: highlighting of code, formulas.
"""

import functools
import html
from typing import Any

TAGS = set(
    "p br hr em strong s code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 table thead tbody tr th td "
    "a".split()
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


@functools.lru_cache(maxsize=4096)
def render(text: str) -> str:
    """A model's Markdown as HTML that runs and fetches nothing; what is very long as plain text."""
    import nh3

    if not text.strip():
        return "<p><em>(an empty answer)</em></p>"
    if len(text) <= LONGEST_MARKDOWN:
        shown = markdown().render(text)
    else:
        shown = f"<pre>{html.escape(text[:LONGEST])}</pre>"
    if len(text) > LONGEST:
        shown += f"<p><em>(cut: {len(text)} characters)</em></p>"
    return nh3.clean(
        shown,
        tags=TAGS,
        attributes={"*": set(), "a": {"href"}, "ol": {"start"}},
        url_schemes={"http", "https"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
