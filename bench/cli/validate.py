"""The command that checks whether a method keeps the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import data_option
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.diagnostics.validation.subject import MethodUnderTest
    from bench.diagnostics.validation.suite import Finding


@click.command()
@click.argument("method")
@click.option("--model", default="resnet8", show_default=True, help="Name of a model.")
@click.option(
    "--dataset", default="digits", show_default=True, help="Name of a data set, of which some images are used."
)
@click.option("--set", "settings", multiple=True, metavar="options.NAME.KEY=VALUE", help="Options of the method.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
def validate(
    method: str, model: str, dataset: str, settings: tuple[str, ...], data_dir: Path | None, *, as_json: bool
) -> int:
    """Check that METHOD, a name or path/to/file.py:Class, keeps the contract of methods.

    \b
    bench validate sbs
    bench validate path/to/file.py:Class
    """  # noqa: D301  (click wants the character)
    import json

    from bench.diagnostics.validation.suite import validate as findings_of
    from bench.errors import EXIT_SOME_FAILED

    subject = _subject(method, settings, model, dataset, data_dir)
    found = []
    if not as_json:
        click.echo(f"{subject.name}{f' ({subject.place})' if subject.place else ''} on {model}, {dataset}")
    for finding in findings_of(subject):
        found.append(finding)
        if not as_json:
            click.echo(_line(finding))
    failed = sum(finding.verdict == "FAIL" for finding in found)
    if as_json:
        document = {"method": subject.name, "model": model, "dataset": dataset, "failed": failed}
        click.echo(json.dumps({**document, "checks": [asdict(finding) for finding in found]}, indent=1))
    else:
        click.echo(_verdict(subject.name, failed, found))
    return EXIT_SOME_FAILED if failed else 0


def _subject(method: str, settings: Sequence[str], model: str, dataset: str, data_dir: Path | None) -> MethodUnderTest:
    """The method with its options on a small task.

    Raises:
        BenchError: The method or an option is unknown, which is told before data are read, or the data are missing.
    """
    from bench.diagnostics.validation.subject import MethodUnderTest, make_ground
    from bench.planning.plan import make_method
    from bench.plugins.method_files import with_files

    named = with_files({"methods": [method]})
    (name,) = named["methods"]
    place, options = named.get("method_files", {}).get(name), _options(name, settings)
    make_method(name, options, place)
    return MethodUnderTest(name=name, ground=make_ground(model, dataset, data_dir), options=options, place=place)


def _options(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """The method's options among settings.

    Raises:
        BenchError: A setting is about something else.
    """
    from bench.spec.sources import merge, parse_setting

    values: dict[str, Any] = {}
    for setting in settings:
        parsed = parse_setting(setting)
        owner = parsed.get("options")
        if not isinstance(owner, dict) or not isinstance(owner.get(name), dict):
            raise BenchError(f"--set {setting} is no option of {name}; allowed here: --set options.{name}.KEY=VALUE")
        values = merge(values, owner[name])
    return values


def _line(finding: Finding) -> str:
    from bench.diagnostics.validation.suite import CHECKS

    width = max(len(check.name) for check in CHECKS)
    see = f" [see {finding.see}]" if finding.see else ""
    return f"{finding.verdict:<4}  {finding.check:<{width}}  {finding.found}{see}"


def _verdict(name: str, failed: int, found: Sequence[Finding]) -> str:
    if failed:
        return f"{failed} of {len(found)} checks failed"
    skipped = sum(finding.verdict == "n/a" for finding in found)
    return f"{name} keeps the contract: {len(found) - skipped} checks passed, {skipped} do not apply"
