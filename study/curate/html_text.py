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
    r"\s*(?:\d{1,3} / "
    r'\d{1,3}\s*)?<div\b[^<>]*\bclass="[^"<>]*\b(?:markdown|prose|whitespace-pre-wrap)\b'
)
PAGE_CODE = re.compile(
    r"<pre\b[^<>]*>\s*(?:<div\b[^<>]*>\s*)+(?:<span\b[^<>]*>[^<>]*</span>\s*)?<button\b.*?</pre>",
    re.S,
)
PAGER = re.compile(r"\A\s*\d{1,3} / \d{1,3}(?=\S)")
CHARS = re.compile(r"Copy\d+ chars / \d+ words")
FENCED_COPY = re.compile(
    r"^([ \t]*)(```+|~~~+)[ \t]*\n?[ \t]*([\w+#.-]*?)[ \t]*\n?[ \t]*Copy code(?:[ \t]*\n|(?=\S))",
    re.M,
)
COPY_LINE = re.compile(r"^[ \t]*Copy code[ \t]*$\n?", re.M)
ABOUT_HTML = re.compile(r"\b(?:html|xml|tags?|jsx|markup|web ?pages?|css)\b", re.I)


class _Shape(html.parser.HTMLParser):
    """Whether a text is HTML of Markdown's kind from end to end.

    That is: known tags, all closed, no text outside of them.
    """

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.open, self.good, self.blocks = [], True, 0

    def handle_starttag(self, tag, attributes):
        inside_svg = "svg" in self.open or tag == "svg"
        self.good &= tag in BLOCKS or tag in INLINE
        self.good &= inside_svg or all(
            a in ATTRIBUTES or a.startswith(("data-", "aria-")) for a, _ in attributes
        )
        self.blocks += tag in BLOCKS
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.good = False

    def handle_data(self, data):
        self.good &= bool(self.open) or not data.strip()

    def handle_entityref(self, name):
        self.good &= bool(self.open)

    def handle_charref(self, name):
        self.good &= bool(self.open)

    def handle_comment(self, data):
        self.good = False

    handle_decl = unknown_decl = handle_pi = handle_comment


def is_export(value, speaker, asked=""):
    """Whether a turn is the HTML of an export.

    asked: the human texts before it, which may be about HTML.
    """
    if WRAPPER.match(value) and value.rstrip().endswith("</div>"):
        return True
    stripped = value.strip()
    if speaker != "gpt" or not stripped.startswith("<") or not stripped.endswith(">"):
        return False
    if ABOUT_HTML.search(asked) and "<pre" not in stripped:
        # an answer that is the HTML that was asked for looks the same: unsure, so it stays
        return False
    shape = _Shape()
    shape.feed(stripped)
    shape.close()
    return shape.good and not shape.open and shape.blocks > 0


def markdown(value):
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
        code = pre.find("code") or pre
        classes = " ".join(code.get("class") or [])
        named = re.search(r"(?:language|lang)-([\w+#.-]+)", classes)
        bar = pre.find("span") if code is not pre else None
        language = (
            named[1]
            if named
            else bar.get_text().strip()
            if bar and not bar.find_parent("code")
            else ""
        )
        listing = code.get_text().removeprefix("\n").rstrip("\n")
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", listing)), default=0))
        language = language if re.fullmatch(r"[\w+#.-]+", language) else ""
        blocks.append(f"{fence}{language}\n{listing}\n{fence}")
        holder = soup.new_tag("p")
        holder.string = f"{mark}{len(blocks) - 1};"
        pre.replace_with(holder)
    converter = markdownify.MarkdownConverter(
        heading_style="ATX",
        bullets="-",
        escape_asterisks=False,
        escape_misc=False,
        escape_underscores=False,
        newline_style="spaces",
        autolinks=True,
    )
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", converter.convert_soup(soup)))

    def put_back(found):
        indent = found[1] if found[1].isspace() else " " * len(found[1])
        return found[1] + blocks[int(found[2])].replace("\n", "\n" + indent)

    return CHARS.sub("", re.sub(rf"^([^\n\ue000]*){mark}(\d+);", put_back, text, flags=re.M))


def text(value, speaker="gpt", asked=""):
    """A turn as plain Markdown: an export's HTML converted, "Copy code" lines gone."""
    if "<" in value:
        if is_export(value, speaker, asked):
            value = markdown(PAGER.sub("", value)).strip()
        elif "<pre" in value and "<button" in value:
            value = PAGE_CODE.sub(lambda found: markdown(found[0]).strip(), value)
    if "Copy code" in value:
        value = FENCED_COPY.sub(r"\1\2\3\n", value)
        value = COPY_LINE.sub("\n", value)  # a blank line, as in Koala's pipeline
    return value


def pager(value):
    """A person's text of an HTML export without the "1 / 2" of the page's pager before it."""
    return PAGER.sub("", value)
