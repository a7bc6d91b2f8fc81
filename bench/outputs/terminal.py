"""Lines on the terminal: what a command prints besides tables, JSON and documents, and whether it has colours."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Literal

import click

from bench.outputs.escaping import in_terminal

if TYPE_CHECKING:  # most commands print lines without rich
    from rich.console import Console

COLOR_CHOICES = ("auto", "always", "never")
Tone = Literal["good", "bad", "unsure", "aside", "strong", ""]
"""Meaning of a text: good or bad news, something to check, an aside, the main sentence, or nothing special."""
STYLES: dict[Tone, str] = {"good": "green", "bad": "red", "unsure": "yellow", "aside": "dim", "strong": "bold", "": ""}
"""Style of each meaning, as rich writes it. Colours mean nothing else anywhere."""

_FILE_WIDTH = 120
_LEAST_TEXT = 30
_chosen = COLOR_CHOICES[0]


def choose_color(when: str) -> None:
    """Set when this command's output has colours: one of `COLOR_CHOICES`."""
    global _chosen  # noqa: PLW0603  (a property of the process, like its standard output)
    _chosen = when


def has_color() -> bool:
    """Return whether the output has colours: by default on a terminal, unless `NO_COLOR` is set (no-color.org)."""
    if _chosen != "auto":
        return _chosen == "always"
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_terminal() -> bool:
    """Return whether a person at a terminal reads the output."""
    return sys.stdout.isatty()


def make_console() -> Console:
    """Return the terminal; if the output is a file, it is as wide as tables need."""
    from rich.console import Console

    width = None if is_terminal() else _FILE_WIDTH
    return Console(color_system="standard" if has_color() else None, no_color=not has_color(), width=width)


def say(line: str, *, tone: Tone = "", err: bool = False) -> None:
    """Print one line, whatever foreign text it holds, without breaking it at the width of the terminal.

    Args:
        line: Line to print.
        tone: Meaning of the line.
        err: Whether to print it on stderr.
    """
    click.echo(toned(in_terminal(line), "" if err else tone), err=err, color=has_color() or None)


def say_item(head: str, text: str, *, tone: Tone = "") -> None:
    """Print a head, such as a state, and a text; on a terminal, further lines of the text begin below its first one.

    Args:
        head: First word, with the blanks behind it.
        text: Text after it.
        tone: Meaning of the head.
    """
    shown = in_terminal(text)
    width = max(_LEAST_TEXT, shutil.get_terminal_size().columns - len(head))
    wrapped = textwrap.wrap(shown, width, break_long_words=False, break_on_hyphens=False)
    first, *others = (wrapped if is_terminal() else None) or [shown]
    for start, line in ((toned(in_terminal(head), tone), first), *((" " * len(head), other) for other in others)):
        click.echo(start + line, color=has_color() or None)


def toned(text: str, tone: Tone) -> str:
    """Return a text in the style of its meaning; as it is where the output has no colours."""
    if not tone or not has_color():
        return text
    style = STYLES[tone]
    return click.style(text, **{style: True} if style in ("bold", "dim") else {"fg": style})
