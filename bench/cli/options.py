"""Options that several commands share."""

import re
from pathlib import Path
from typing import Any

import click

from bench.errors import BenchError
from bench.outputs.terminal import COLOR_CHOICES, choose_color

DEFAULT_STORE = "bench-store"
MOST_LISTED = 200
"""Units of a study up to which a command gives each a row of its own."""


class _Path(click.Path):
    """A path that is not empty; an empty one would mean the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            click.BadParameter: It is empty, or not of the right kind.
        """
        if not str(value):
            self.fail("the path is empty; give one, or leave the option out", param, ctx)
        return super().convert(value, param, ctx)


class Text(click.types.StringParamType):
    """A text that is not empty; an empty one would quietly mean the default, or nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text.

        Raises:
            click.BadParameter: It is empty.
        """
        if isinstance(value, str) and not value.strip():
            self.fail(f"{value!r} is empty; give a value, or leave the option out", param, ctx)
        return super().convert(value, param, ctx)


class Number(click.types.FloatParamType):
    """A number, written in the digits 0 to 9 and a point."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number.

        Raises:
            click.BadParameter: It is not one.
        """
        if isinstance(value, str) and not _DECIMAL.fullmatch(value):
            self.fail(f"{value!r} is not a number; write it in the digits 0 to 9, e.g. 0.3", param, ctx)
        return super().convert(value, param, ctx)


class WholeNumber(click.IntRange):
    """A whole number in a range, written in the digits 0 to 9 alone."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number.

        Raises:
            click.BadParameter: It is not one, or out of range.
        """
        if isinstance(value, str) and not WHOLE.fullmatch(value):
            self.fail(f"{value!r} is not a whole number; write it in the digits 0 to 9", param, ctx)
        return super().convert(value, param, ctx)


WHOLE = re.compile(r"\s*-?[0-9]{1,18}\s*")
"""Form of whole numbers on the command line; Python's own also allows `1_0` and the digits of all scripts."""
_DECIMAL = re.compile(r"\s*-?[0-9]{1,18}(\.[0-9]{0,18})?\s*")
MOST_PROCESSES = 1024
"""Largest number of runs, threads or devices at a time that is not a slip of the finger."""

FOLDER = _Path(file_okay=False, path_type=Path)
FILE = _Path(dir_okay=False, path_type=Path)

store_option = click.option(
    "--store",
    "store_dir",
    type=FOLDER,
    default=DEFAULT_STORE,
    show_default=True,
    envvar="BENCH_STORE",
    help="Folder of results.",
)
data_option = click.option(
    "--data-dir",
    type=FOLDER,
    default=None,
    envvar="BENCH_DATA_DIR",
    help="Folder of data sets in torchvision's layout.",
)
networks_option = click.option(
    "--networks", is_flag=True, help="Evaluate every network of an archive again on the test images."
)
tracking_option = click.option(
    "--tracking-uri", default=None, help="MLflow server or database.  [default: an SQLite file in the store]"
)


def color_option() -> click.Option:
    """Make the option of every command that says whether its output has colours."""
    return click.Option(
        ["--color"],
        type=click.Choice(COLOR_CHOICES),
        default=COLOR_CHOICES[0],
        expose_value=False,
        is_eager=True,
        callback=lambda _context, _option, when: choose_color(when),
        help="Colours of the output; auto: on a terminal, unless NO_COLOR is set.",
    )


def names(text: str, flag: str) -> list[str]:
    """Split a list of names.

    Args:
        text: Names, separated by commas.
        flag: Option that the list was given with.

    Raises:
        BenchError: An entry is empty.
    """
    entries = [part.strip() for part in text.split(",")]
    if not all(entries):
        raise BenchError(f"{flag} '{text}' has an empty entry; separate names by single commas, e.g. sbs,dnas")
    return entries
