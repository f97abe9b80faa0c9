"""The HTML of early ShareGPT exports -> the Markdown it was drawn from; every other text as it was.

    text(value, "gpt") -> value       # Markdown where `value` is an export's HTML, else unchanged

The first ShareGPT extension stored the answer's element as it stood in the page: <div
class="markdown prose ...">, code in <pre> under a bar that names the language and says "Copy code",
the person's text plain, sometimes with the pager's "1 / 2" before it. Later exports are Markdown. A
turn is taken for HTML only as a whole: it starts and ends with a tag, all tags are those that
Markdown makes, and they close; so a question about <div>, List<String>, a < b or a listing of HTML
stays as it is. A code block of ChatGPT's page pasted into other text is converted in its place.
Uses markdownify (on Beautiful Soup) with our code blocks, and without escapes: an escaped my\\_name
is not what the model wrote. Left out: images' alternative texts beyond Markdown's own, colours,
cells that span others.
"""

import html.parser
import re
from typing import Any

BLOCKS = frozenset(
    "p div ol ul li pre h1 h2 h3 h4 h5 h6 blockquote table thead tbody tfoot tr th td hr".split()
)
INLINE = frozenset(
    "a abbr b br button code del em i img input kbd p s small span strong sub sup svg path rect "
    "polyline line "
    "circle g u mark details summary math semantics annotation mrow mi mo mn".split()
)
VOID = frozenset("br hr img input path rect polyline line circle col wbr".split())
ATTRIBUTES = frozenset(
    "class href src alt title start target rel align style dir rowspan colspan type checked "
    "disabled "
    "width height".split()
)
WRAPPER = re.compile(
    r"\s*+(?:\d{1,3} / \d{1,3}\s*+)?"
    r'<div\b[^<>]*\bclass="[^"<>]*\b(?:markdown|prose|whitespace-pre-wrap)\b'
)
# Where a code block of ChatGPT's page opens: a bar with the language's name and a button.
PAGE_CODE = re.compile(
    r"<pre\b[^<>]*>\s*+(?:<div\b[^<>]*>\s*+)+(?:<span\b[^<>]*>[^<>]*</span>\s*+)?<button\b"
)
PAGER = re.compile(r"\A\s*+\d{1,3} / \d{1,3}(?=\S)")
CHARS = re.compile(r"Copy\d+ chars / \d+ words")
# Possessive: a text of blanks after a fence must not be tried in every way it can be parted.
FENCED_COPY = re.compile(
    r"^([ \t]*+)(```+|~~~+)[ \t]*+(?:\n[ \t]*+)?([\w+#.-]*?)[ \t]*+(?:\n[ \t]*+)?"
    r"Copy code(?:[ \t]*+\n|(?=\S))",
    re.M,
)
COPY_LINE = re.compile(r"^[ \t]*+Copy code[ \t]*+$\n?", re.M)
ABOUT_HTML = re.compile(r"\b(?:html|xml|tags?|jsx|markup|web ?pages?|css)\b", re.I)
TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)\b[^<>]*>")
BLANKS = re.compile(r"[ \t\r\n]{100,}")
DEEPEST = 100  # elements within one another: pages have some thirty, and converting them recurses
LONGEST = 200_000  # characters of a turn that are looked at as HTML


def convertible(value: str) -> bool:
    """Whether a text is no longer and its elements no deeper than a page's."""
    depth = deepest = 0
    for tag in TAG.finditer(value) if len(value) <= LONGEST else ():
        if tag[2].lower() not in VOID:
            depth = max(0, depth - 1) if tag[1] else depth + 1
            deepest = max(deepest, depth)
    return len(value) <= LONGEST and deepest <= DEEPEST


class _Shape(html.parser.HTMLParser):
    """Whether a text is HTML of Markdown's kind from end to end.

    That is: known tags, all closed, no text outside of them.
    """

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.open, self.good, self.blocks, self.svgs = [], True, 0, 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.svgs += tag == "svg"
        self.good &= tag in BLOCKS or tag in INLINE
        self.good &= self.svgs > 0 or all(
            a in ATTRIBUTES or a.startswith(("data-", "aria-")) for a, _ in attributes
        )
        self.blocks += tag in BLOCKS
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._close()

    def _close(self):
        self.svgs -= self.open.pop() == "svg"

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if self.open and self.open[-1] == tag:
            self._close()
        else:
            self.good = False

    def handle_data(self, data: str) -> None:
        self.good &= bool(self.open) or not data.strip()

    def handle_entityref(self, name: str) -> None:
        self.good &= bool(self.open)

    def handle_charref(self, name: str) -> None:
        self.good &= bool(self.open)

    def handle_comment(self, data: str) -> None:
        self.good = False

    handle_decl = unknown_decl = handle_pi = handle_comment


def is_export(value: str, speaker: str, queries: str = "") -> bool:
    """Whether a turn is the HTML of an export.

    queries: the human texts before it, which may be about HTML.
    """
    if len(value) > LONGEST:
        return False
    if WRAPPER.match(value) and value.rstrip().endswith("</div>"):
        return convertible(value)
    stripped = value.strip()
    if speaker != "gpt" or not stripped.startswith("<") or not stripped.endswith(">"):
        return False
    if ABOUT_HTML.search(queries) and "<pre" not in stripped:
        # an answer that is the HTML that was asked for looks the same: unsure, so it stays
        return False
    if not convertible(stripped):
        return False
    shape = _Shape()
    shape.feed(stripped)
    shape.close()
    return shape.good and not shape.open and shape.blocks > 0


def markdown(value: str) -> str:
    """HTML of ChatGPT's page -> Markdown: fenced code with its language, nested lists, tables.

    ValueError without bs4.
    """
    try:
        import bs4
        import markdownify
    except ImportError:
        raise ValueError("HTML exports need markdownify: pip install markdownify") from None
    soup = bs4.BeautifulSoup(value, "html.parser")
    for element in soup.find_all(["button", "svg", "script", "style"]):
        if element.name in ("button", "svg") or not element.find_parent("pre"):
            element.decompose()
    # a formula is drawn twice in the page; its source is in the annotation
    for formula in soup.find_all(class_="katex"):
        if formula.find("annotation"):
            formula.replace_with(f"${formula.find('annotation').get_text()}$")
    for bar in soup.find_all(string=lambda s: "|" in s and s.find_parent(["td", "th"])):
        bar.replace_with(bar.replace("|", "\\|"))
    mark = "\ue000"
    while mark in value:
        mark += "\ue000"
    # code is put back after the conversion: white space and marks in it are not Markdown's business
    blocks = []
    for pre in soup.find_all("pre"):
        holder = soup.new_tag("p")
        holder.string = f"{mark}{len(blocks)};"
        blocks.append(listing(pre))
        pre.replace_with(holder)
    for string in soup.find_all(string=BLANKS):  # one blank to HTML, and slow for the converter
        string.replace_with(BLANKS.sub(" ", string))
    converter = markdownify.MarkdownConverter(
        heading_style="ATX",
        bullets="-",
        escape_asterisks=False,
        escape_misc=False,
        escape_underscores=False,
        newline_style="spaces",
        autolinks=True,
    )
    lines = converter.convert_soup(soup).split("\n")
    # blanks before a line's end go, which a pattern would look for from each of them
    text = "\n".join([*(line.rstrip(" ") for line in lines[:-1]), lines[-1]])
    text = re.sub(r"\n{3,}", "\n\n", text)

    def put_back(marked):
        indent = marked[1] if marked[1].isspace() else " " * len(marked[1])
        return marked[1] + blocks[int(marked[2])].replace("\n", "\n" + indent)

    text = re.sub(rf"^([^\n\ue000]*){mark}(\d+);", put_back, text, flags=re.M)
    return CHARS.sub("", text)


def listing(pre: Any) -> str:
    """A <pre> as a fenced block with its language."""
    code = pre.find("code") or pre
    named = re.search(r"(?:language|lang)-([\w+#.-]+)", " ".join(code.get("class") or []))
    bar = pre.find("span") if code is not pre else None
    language = ""
    if named:
        language = named[1]
    elif bar and not bar.find_parent("code"):
        language = bar.get_text().strip()
    language = language if re.fullmatch(r"[\w+#.-]+", language) else ""
    lines = code.get_text().removeprefix("\n").rstrip("\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", lines)), default=0))
    return f"{fence}{language}\n{lines}\n{fence}"


def page_code(value: str) -> str:
    """A text with the code blocks of ChatGPT's page in it made Markdown, each in its place."""
    *closed, rest = value.split("</pre>")
    parts = []
    for part in closed:
        block = PAGE_CODE.search(part)
        whole = f"{part[block.start() :]}</pre>" if block else ""
        if block and convertible(whole):
            parts += [part[: block.start()], markdown(whole).strip()]
        else:
            parts += [part, "</pre>"]
    return "".join([*parts, rest])


def text(value: str, speaker: str = "gpt", queries: str = "") -> str:
    """A turn as plain Markdown: an export's HTML converted, "Copy code" lines gone."""
    if "<" in value:
        if is_export(value, speaker, queries):
            value = markdown(PAGER.sub("", value)).strip()
        elif "<pre" in value and "<button" in value:
            value = page_code(value)
    if "Copy code" in value:
        value = FENCED_COPY.sub(r"\1\2\3\n", value)
        value = COPY_LINE.sub("\n", value)  # a blank line, as in Koala's pipeline
    return value


def pager(value: str) -> str:
    """A person's text of an HTML export without the "1 / 2" of the page's pager before it."""
    return PAGER.sub("", value)
