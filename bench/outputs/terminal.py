"""Lines on the terminal: what a command prints besides tables, JSON and documents."""

import click

from bench.outputs.escaping import in_terminal


def say(line: str, *, err: bool = False) -> None:
    """Print one line, whatever foreign text it holds, without breaking it at the width of the terminal.

    Args:
        line: Line to print.
        err: Whether to print it on stderr.
    """
    click.echo(in_terminal(line), err=err)
