"""Foreign texts are shown as they are, and nothing in them works as an instruction."""

import csv
import html
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bench.errors import escaped
from bench.outputs.escaping import code_in_latex, in_csv, in_html, in_latex, in_markdown, in_terminal, visible_texts

EVIL = (
    *("\x1b[2J\x1b[31m", "a\nb", "\r\n", "\u202eabc\u2066", "\x07", "\u2028", "\u200b", "\x9b31m", "\ud800"),
    *(
        "[x](http://evil)",
        "![x](http://evil/p.png)",
        "<img src=x onerror=alert(1)>",
        "<http://evil>",
        "a|b",
        "\\|",
        "`x`",
    ),
    *("http://evil", "www.evil.org", "[a]: http://evil", "&lt;", "&#60;", "**b**", "_i_", "~~s~~", "$x$", "# h", "> q"),
    *("- x", "1. x", "---", "+ x", "<!-- x", "</td>", "]]>", "{{ x }}", "&amp;copy;", "a\\", "\\`"),
    *(
        "=1+1",
        "+1+1",
        "-1+1|'/C calc'!A0",
        "@SUM(1)",
        "\t=1",
        '=HYPERLINK("http://evil")',
        "＝1",
        "-0.5",
        "+0.52",
        "1e5",
    ),
)
FOREIGN = st.one_of(
    st.sampled_from(EVIL),
    st.lists(st.one_of(st.sampled_from(EVIL), st.text(max_size=5)), max_size=4).map("".join),
    st.text(alphabet="[]()!<>&;#\\`*_~|$:/w.htp-+= 1a\n", max_size=25),
)
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def texts_of_markdown(source: str) -> tuple[str, set[str]]:
    """What a reader sees of Markdown, and the kinds of its elements."""
    shown, kinds = "", set()
    for token in PARSER.parse(source):
        kinds.add(token.type)
        for child in token.children or ():
            kinds.add(child.type)
            shown += child.content
    return shown, kinds


@settings(max_examples=400, deadline=None)
@given(FOREIGN)
@example("![a](b)")
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    for before, allowed in (("", {"paragraph"}), ("- ", {"paragraph", "list_item", "bullet_list"})):
        source = f"{before}x {in_markdown(text)} x" if not before else f"{before}{in_markdown(text)}"
        shown, kinds = texts_of_markdown(source)
        expected = escaped(text).strip()
        assert shown == (expected if before else f"x {expected} x".replace("x  x", "x  x")), source
        assert {kind.removesuffix("_open").removesuffix("_close") for kind in kinds} <= allowed | {"inline", "text"}


@settings(max_examples=300, deadline=None)
@given(FOREIGN)
def test_a_cell_of_markdown_is_one_cell(text: str) -> None:
    source = f"| a | b |\n| --- | --- |\n| {in_markdown(text)} | end |\n"
    tokens = PARSER.parse(source)
    cells = [
        "".join(child.content for child in tokens[number + 1].children or ())
        for number, token in enumerate(tokens)
        if token.type == "td_open"
    ]
    assert cells == [escaped(text).strip(), "end"], source


@pytest.mark.parametrize("address", ["http://evil", "https://evil", "HTTP://evil", "ftp://evil", "www.evil.org"])
def test_addresses_do_not_become_links(address: str) -> None:
    assert not re.search(r"(?i)(https?|ftp)://|www\.", in_markdown(f"see {address} now"))


@given(FOREIGN)
def test_no_text_works_on_a_terminal(text: str) -> None:
    assert in_terminal(text).isprintable()
    assert in_terminal(text) == text or not text.isprintable()


@given(FOREIGN)
def test_no_cell_of_csv_is_a_formula(text: str) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow([in_csv(text), "end"])
    ((cell, end),) = csv.reader(io.StringIO(stream.getvalue()))
    assert end == "end" and cell.isprintable()
    assert cell.removeprefix("'") == escaped(text).removeprefix("'")
    if cell.lstrip()[:1] in tuple("=+-@＝＋－＠"):
        float(re.match(r"[-+]?[\d.]+(e[-+]?\d+)?", cell.strip(), re.IGNORECASE)[0])  # type: ignore[index]
        assert not re.search(r"[-+*/^=@&|!(].*[-+*/^=@&|!(]", cell[1:])


@pytest.mark.parametrize(
    "number", ["-0.52", "+0.52", "-1e-05", "+0.52±0.10", "-0.52 †", "-3 %", "4", "", "[-0.1, 0.2]"]
)
def test_numbers_in_csv_stay_as_they_are(number: str) -> None:
    assert in_csv(number) == number


@pytest.mark.parametrize("formula", ["=1", "+a", "-a", "@a", "-1+1", "+1|x!A0", "  =1", "＝1", "-cmd", "=", "-"])
def test_formulas_are_marked_as_texts(formula: str) -> None:
    assert in_csv(formula) == f"'{formula}"


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts = ""
        self.attributes: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [value for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts += data


@given(FOREIGN)
def test_html_shows_a_text_as_it_is(text: str) -> None:
    parser = _Texts()
    parser.feed(f'<p title="{in_html(text)}">{in_html(text)}</p>')
    parser.close()
    assert (parser.tags, parser.texts, parser.attributes) == (["p"], escaped(text), [escaped(text)])
    assert html.unescape(in_html(text)) == escaped(text)


@given(FOREIGN)
def test_latex_has_no_command_of_a_text(text: str) -> None:
    known = (
        r"\\(?:text(?:backslash|asciitilde|asciicircum|less|greater|bar|quotesingle|asciigrave)|dots)\{\}"
        r"|\\[&%$#_{}]|\$(?:\\[A-Za-z]+|-)\$|\{[\[\]*]\}|-\{\}|\\texttt\{"
    )
    for shown in (in_latex(text), code_in_latex(text)):
        rest = re.sub(known, "", shown.removesuffix("}") if shown.startswith(r"\texttt{") else shown)
        assert not re.search(r"[\\{}$&#^_~%\n]", rest), shown


def test_commands_stay_the_same_in_latex() -> None:
    assert code_in_latex("bench x --a 'b c'") == (r"\texttt{bench x -{}-{}a \textquotesingle{}b c\textquotesingle{}}")
    assert code_in_latex("") == ""


def test_texts_in_documents_are_visible() -> None:
    assert visible_texts({"a\n": ["\u202e", 1, None, {"b": "ok"}]}) == {"a\\n": ["\\u202e", 1, None, {"b": "ok"}]}
