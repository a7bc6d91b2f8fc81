"""Write the sections of `docs/commands.md` from the parsers of the command line: `python docs/make_commands.py`.

The result replaces what stands between `<!-- commands -->` and `<!-- end -->` in the page.
`tests/docs/test_pages.py` fails when the page is not what this script would write.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from bench.cli.main import bench

PAGE = Path(__file__).with_name("commands.md")
BEGIN, END = "<!-- commands -->", "<!-- end -->"


def page(text: str) -> str:
    """Return the page with new sections."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = "\n".join(sections())
    return f"{before}{BEGIN}\n\n{lines}\n{END}{after}"


def sections() -> Iterator[str]:
    """Yield the lines of a section for each command, in the order of `bench --help`."""
    for name, command in bench.commands.items():
        context = click.Context(command, info_name=f"bench {name}")
        yield f"## bench {name}\n"
        yield f"    {command.get_usage(context).removeprefix('Usage: ')}\n"
        yield f"{_description(command)}\n"
        if options := [option for option in command.params if isinstance(option, click.Option)]:
            yield "| option | meaning |\n| --- | --- |"
            yield from (_row(option, context) for option in options)
            yield ""


def _description(command: click.Command) -> str:
    """Return the help of a command; examples, which follow a backspace, as blocks of code."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        "\n".join(f"    {line}" for line in paragraph.splitlines()[1:])
        if paragraph.startswith("\b")
        else textwrap.fill(" ".join(paragraph.split()), 100)
        for paragraph in paragraphs
    )


def _row(option: click.Option, context: click.Context) -> str:
    """Return an option as a row: how it is written, and what it means with its default."""
    written, meaning = option.get_help_record(context) or ("", option.help or "")
    cells = f"`{written}`", re.sub(r" {2,}", " ", meaning).replace("<", "&lt;").replace("[", "\\[")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
