"""Texts of unknown origin in each form of output: names, errors, names of classes and files.

There is one function for each form. Whatever the text is, the reader sees it on one line as it is, with escapes for
what cannot be seen: control characters, line breaks, marks that change the direction of writing. Nothing in it works as
an instruction to the program that shows it.
"""

import html
import re
from typing import Any

from bench.errors import escaped

_MARKDOWN = re.compile(
    r"""
      [\\|*`~$]                             # escapes, cells, emphasis, code, strikethrough, formulas
    | <(?=[A-Za-z/!?])                      # tags; "n<6" is none, because no tag starts with a digit
    | &(?=[#\w]+;)                          # characters by name
    | (?<!\w)_ | _(?!\w)                    # emphasis
    | \](?=[(\[:])                          # links, images, and where links lead
    | (?: (?<=http) | (?<=https) | (?<=ftp) ) : (?=//) | (?<=www) \.  # addresses that become links by themselves
    """,
    re.VERBOSE | re.IGNORECASE,
)
_MARKDOWN_BLOCK = re.compile(r"^(?:>|[-+](?=[\s-]|$)|\#(?=\#{0,5}(?:\s|$))|\d+(?=[.)](?:\s|$)))")
"""What would begin a quotation, a list, a heading or a rule."""

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
_PLAIN_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?[^-+*/^=@&|!(<>:;,]*")

_LAST_LATEX_LETTER = 0x17E
"""Last letter that LaTeX sets without help: the end of Latin Extended-A."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # After the \\ of the previous row LaTeX would read a bracket as its argument and a star as part of it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "…": r"\dots{}",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "Δ": r"$\Delta$",
    "λ": r"$\lambda$",
    "α": r"$\alpha$",
    "σ": r"$\sigma$",
    "’": "'",
    "“": "``",
    "”": "''",
    "—": "---",
    "→": r"$\rightarrow$",
}
_LATEX_CODE = _LATEX | {"'": r"\textquotesingle{}", '"': '"', "`": r"\textasciigrave{}", "-": "-{}"}
"""In typewriter letters: straight quotation marks, and hyphens that stay apart."""


def in_terminal(text: str) -> str:
    """Return a text for a terminal or a log: no part of it moves the cursor, changes colours or writes a line."""
    return escaped(text)


def in_markdown(text: str) -> str:
    """Return a text for GitHub-flavoured Markdown: a cell, an item of a list, or a part of a paragraph."""
    inline = _MARKDOWN.sub(r"\\\g<0>", escaped(text).strip())
    return _MARKDOWN_BLOCK.sub(_escaped_beginning, inline)


def _escaped_beginning(found: re.Match[str]) -> str:
    """Escape what begins a block; of a number, the sign behind it."""
    return found[0] + "\\" if found[0].isdigit() else "\\" + found[0]


def in_csv(text: str) -> str:
    """Return the text of a CSV cell, which no spreadsheet takes for a formula; numbers stay numbers."""
    shown = escaped(text)
    return f"'{shown}" if _FORMULA.match(shown) and not _PLAIN_NUMBER.fullmatch(shown) else shown


def in_latex(text: str) -> str:
    """Return a text for LaTeX; a hyphen before a number becomes a minus sign."""
    signed = re.sub(r"(?<![\w.-])-(?=[\d.])", "−", escaped(text))
    return "".join(_latex_character(character, _LATEX) for character in signed)


def code_in_latex(text: str) -> str:
    """Return a text to be copied, such as a command, for LaTeX."""
    shown = "".join(_latex_character(character, _LATEX_CODE) for character in escaped(text))
    return rf"\texttt{{{shown}}}" if shown else ""


def _latex_character(character: str, known: dict[str, str]) -> str:
    """Escape a character; one that LaTeX's usual fonts lack becomes its number, so that the document compiles."""
    if character in known and known[character] != character:
        return known[character]
    if ord(character) > _LAST_LATEX_LETTER:
        return rf"{{[}}U+{ord(character):04X}{{]}}"
    return character


def in_html(text: str) -> str:
    """Return a text for an HTML page, inside an element or a quoted attribute."""
    return html.escape(escaped(text))


def visible_texts(document: Any) -> Any:
    """Return a document of JSON, such as a chart, whose texts have escapes for what cannot be seen."""
    if isinstance(document, str):
        return escaped(document)
    if isinstance(document, list):
        return [visible_texts(item) for item in document]
    if isinstance(document, dict):
        return {visible_texts(key): visible_texts(value) for key, value in document.items()}
    return document
