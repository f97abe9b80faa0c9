"""HTML of early exports becomes Markdown; everything else stays as it was, byte for byte."""

import pytest

from study.curate import html_text
from text import dialogues

BAR = (
    '<div class="bg-black mb-4 rounded-md"><div class="flex items-center relative"><span '
    'class="">%s</span><button class="flex ml-auto gap-2">'
    '<svg stroke="currentColor" viewBox="0 0 24 24"><path d="M16 4h2"></path></svg>Copy '
    'code</button></div><div class="p-4 overflow-y-auto">'
)
CODE = (
    "<pre>"
    + BAR % "python"
    + (
        '<code class="!whitespace-pre hljs language-python"><span '
        'class="hljs-keyword">if</span> a &lt; b:\n'
        "    x = &quot;__y__&quot;\n\n\n    z = 1\n</code></div></div></pre>"
    )
)
PAGE = '<div class="markdown prose w-full break-words dark:prose-invert light">%s</div>'


def test_a_code_block_keeps_its_language_and_text_and_loses_its_bar():
    assert (
        html_text.text(PAGE % f"<p>See:</p>{CODE}")
        == 'See:\n\n```python\nif a < b:\n    x = "__y__"\n\n\n    z = 1\n```'
    )


def test_a_code_block_whose_text_has_fences_gets_a_longer_fence():
    assert (
        html_text.text(PAGE % "<pre><code>```\nx\n```\n</code></pre>") == "````\n```\nx\n```\n````"
    )


def test_lists_nest_and_keep_their_numbers():
    value = PAGE % '<ol start="3"><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ol>'
    assert html_text.text(value) == "3. a\n   - b\n     - c\n4. d"


def test_code_in_a_list_is_indented_with_it():
    assert (
        html_text.text(PAGE % "<ol><li><p>Run</p><pre><code>ls\ncd</code></pre></li></ol>")
        == "1. Run\n\n   ```\n   ls\n   cd\n   ```"
    )


def test_a_table_is_a_table_and_its_bars_are_escaped():
    value = PAGE % (
        "<table><thead><tr><th>A</th><th>B</th></tr></thead><tbody><tr><td>1</td><td>x|y</td></tr></tbody></table>"
    )
    assert html_text.text(value) == "| A | B |\n| --- | --- |\n| 1 | x\\|y |"


def test_marks_are_markdowns_and_nothing_is_escaped():
    value = PAGE % (
        "<h2>T</h2><p><strong>my_var</strong> &amp; <em>e</em> 2 * 3 "
        '<code>a&lt;b</code><br>next <a href="https://x.y">l</a></p>'
    )
    assert html_text.text(value) == "## T\n\n**my_var** & *e* 2 * 3 `a<b`\nnext [l](https://x.y)"


def test_a_formula_is_its_source_once():
    value = PAGE % (
        '<p>So <span class="katex"><span '
        'class="katex-mathml"><math><semantics><mi>E</mi><annotation '
        'encoding="application/x-tex">E=mc^2'
        '</annotation></semantics></math></span><span class="katex-html">E=mc2</span></span></p>'
    )
    assert html_text.text(value) == "So $E=mc^2$"


def test_an_answer_of_bare_elements_is_html_too():
    assert html_text.text("<p>one</p>\n<ul><li>two</li></ul>", "gpt") == "one\n\n- two"


@pytest.mark.parametrize(
    "value",
    [
        "Use List<String> and a < b && c > d.",
        "<div id='x'><p>mine</p></div>",
        "<p>open",
        "<p>a</p> and then text",
        "<String>",
        "<p>a</p><Foo>b</Foo>",
        "How do I centre a <div>?",
        "```html\n<p>x</p>\n```",
        "a &lt; b",
        "<!-- c --><p>x</p>",
        "  indented\n\n\n\nand spaced  ",
        "click Copy code to copy",
        "",
    ],
)
def test_plain_text_stays_as_it_is(value):
    assert html_text.text(value, "gpt") == value


def test_a_persons_html_and_html_that_was_asked_for_stay():
    listing = "<ul><li>Home</li></ul>"
    assert html_text.text(listing, "human") == listing
    assert html_text.text(listing, "gpt", "write the HTML of a menu") == listing
    assert html_text.text(listing, "gpt", "name one place") == "- Home"


def test_a_code_block_of_the_page_is_converted_in_other_text():
    assert html_text.text(f"Do List<T>:\n\n{CODE}\n\nthen <b>", "human").startswith(
        "Do List<T>:\n\n```python\nif a < b:\n"
    )
    assert html_text.text(f"x\n{CODE}\nthen <b>").endswith("```\nthen <b>")


@pytest.mark.parametrize(
    "value, wanted",
    [
        ("glsl\nCopy code\nfloat x;", "glsl\n\nfloat x;"),
        ("```python\nCopy code\nx = 1\n```", "```python\nx = 1\n```"),
        ("```\npythonCopy code\nx = 1\n```", "```python\nx = 1\n```"),
        ("```pythonCopy codeimport x\n```", "```python\nimport x\n```"),
        ("a\n  Copy code  \nb\nCopy code", "a\n\nb\n\n"),
    ],
)
def test_copy_code_lines_are_gone(value, wanted):
    assert html_text.text(value) == wanted


def test_the_pager_goes_where_it_is_glued_to_the_text():
    assert html_text.pager("1 / 2What is it?") == "What is it?"
    assert html_text.pager("1 / 2 of a cup") == "1 / 2 of a cup"


def test_private_characters_of_the_text_are_not_taken_for_places_of_code():
    assert (
        html_text.text(PAGE % "<p>\ue0000; x</p><pre><code>c</code></pre>")
        == "\ue0000; x\n\n```\nc\n```"
    )


def test_real_markdown_dialogues_are_unchanged(data_dir):
    changed = [
        (d["id"], t)
        for d in dialogues.read_dialogues(data_dir / "dialogues" / "sharegpt_en.json.gz")
        for t in d["conversations"]
        if html_text.text(t["value"], t["from"]) != t["value"]
    ]
    assert [name for name, _ in changed] == ["8mQvBss_5"] and "\nCopy code\n" in changed[0][1][
        "value"
    ]
