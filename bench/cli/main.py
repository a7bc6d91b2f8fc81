"""The command line, one module for each group of commands.

A command imports what it needs only when it runs, so that `--help` answers at once.
"""

import click

from bench import __version__
from bench.cli.cost import cost
from bench.cli.export import choose, export, import_
from bench.cli.list import list_
from bench.cli.options import Text, color_option
from bench.cli.run import run
from bench.cli.speed import speed
from bench.cli.store import archive, clean, doctor, restore
from bench.cli.study import compare, leaderboard, plan_seeds, report, status
from bench.cli.tracking import sync, ui
from bench.cli.validate import validate, verify

_SECTIONS = {
    "Studies": (run, status, plan_seeds),
    "Results": (report, compare, leaderboard, choose, export, import_, ui, sync),
    "Methods and costs": (list_, cost, validate, speed, verify),
    "Store and machine": (archive, restore, clean, doctor),
}
"""Commands by what they are about, in the order of the help."""


class _Sections(click.Group):
    """A group whose help lists its commands by section."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list of commands for each section."""
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(str(each.name), each.get_short_help_str(66)) for each in commands])


@click.group(cls=_Sections, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="sbs-bench")
@click.pass_context
def bench(context: click.Context) -> None:
    """Compare neural-network compression methods at matched bit-operation budgets.

    \b
    bench run --methods sbs,dnas          compare two methods on the embedded data set
    bench report                          show the table of the latest study
    bench ui                              show the same in MLflow
    """  # noqa: D301  (click wants the character)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (each for commands in _SECTIONS.values() for each in commands):
    for _option in _command.params:
        if isinstance(_option, click.Option) and type(_option.type) is click.types.StringParamType:
            _option.type = Text()
    _command.params.append(color_option())
    bench.add_command(_command)
