"""The commands that check code: `bench validate` checks a method, `bench verify` checks the paper's claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.options import FILE, FOLDER, data_option, networks_option
from bench.errors import BenchError
from bench.outputs.terminal import Tone, say, say_item

if TYPE_CHECKING:
    from bench.diagnostics.validation.suite import CheckResult
    from bench.diagnostics.validation.under_test import MethodUnderTest

_VERDICTS = {"yes": "pass", "no": "FAIL", "deviation": "note"}
_TONES: dict[str, Tone] = {"yes": "good", "no": "bad", "deviation": "unsure"}


@click.command()
@click.argument("archive", type=FILE, required=False, metavar="[ARCHIVE]")
@click.option("--out", type=FOLDER, default=None, help="Folder to which the lines are written as a table, and figures.")
@networks_option
@data_option
def verify(archive: Path | None, out: Path | None, data_dir: Path | None, *, networks: bool) -> int:
    """Check claims of the paper against this implementation, or a study that somebody else ran.

    The claims are its theorem, bounds, toy regression and printed costs. With ARCHIVE, a file of `bench archive`, the
    ids, costs, choices, data and tables in it are computed again.

    \b
    bench verify
    bench verify quick.tar.gz --networks
    """  # noqa: D301  (click wants the character)
    if archive is not None:
        if out is not None:
            raise BenchError("--out writes the checks of the paper's claims; leave it out with an archive")
        return _verify_archive(archive, data_dir, networks=networks)
    if networks:
        raise BenchError("--networks is about an archive; name one: bench verify FILE.tar.gz --networks")
    return _verify_claims(out)


def _verify_archive(archive: Path, data_dir: Path | None, *, networks: bool) -> int:
    """Print the checks of an archive, and return the exit status."""
    from bench.diagnostics.submission import Inspection, Submission, inspect, unpacked
    from bench.errors import EXIT_SOME_FAILED
    from bench.reporting.wording import count

    with unpacked(archive) as results:
        lines = []
        for line in inspect(Submission(results=results, data_dir=data_dir), networks=networks):
            lines.append(line)
            say(f"{_VERDICTS[line.verdict]}  {line.what}: {line.figure}")
    found = Inspection(lines=tuple(lines), networks=networks)
    if found.faults:
        say(f"{count(len(found.faults), 'check')} failed: the archive cannot stand on a leaderboard")
    elif found.missing:
        say(f"{count(len(found.missing), 'check')} could not be made: see the lines with 'note'")
    else:
        say("all checks passed" + ("" if networks else "; --networks evaluates the networks too"))
    return EXIT_SOME_FAILED if found.faults else 0


def _verify_claims(out: Path | None) -> int:
    """Print the checks of the paper's claims, and return the exit status."""
    from bench.diagnostics.verify import verification
    from bench.errors import EXIT_SOME_FAILED
    from bench.plugins.entry_points import available
    from bench.plugins.registry import load
    from bench.reporting.report import Figure, write_document

    lines, figures = [], []
    for name in available("checks"):
        for output in load("checks", name)():
            if isinstance(output, Figure):
                figures.append(output)
            else:
                lines.append(output)
                say_item(
                    f"{_VERDICTS[output.verdict]}  ", f"{output.what}: {output.figure}", tone=_TONES[output.verdict]
                )
    if out is not None:
        say(f"{len(write_document(verification(lines, figures), out))} files in {out}")
    counts = Counter(line.verdict for line in lines)
    failed, deviations = counts["no"], counts["deviation"]
    say(f"{failed} checks failed" if failed else "all checks passed")
    if deviations:
        say(f"{deviations} printed figures do not follow from the paper's own rules: see the lines with 'note'")
    return EXIT_SOME_FAILED if failed else 0


@click.command()
@click.argument("method")
@click.option("--model", default="resnet8", show_default=True, help="Model of the task.")
@click.option("--dataset", default="digits", show_default=True, help="Data set of the task; a few images are used.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="options.NAME.KEY=VALUE",
    help="Option of the method; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@data_option
def validate(
    method: str, model: str, dataset: str, settings: tuple[str, ...], data_dir: Path | None, *, as_json: bool
) -> int:
    """Check that a method keeps the contract of methods.

    METHOD is a name or path/to/file.py:Class.

    \b
    bench validate sbs
    bench validate path/to/file.py:Class
    """  # noqa: D301  (click wants the character)
    import json

    from bench.diagnostics.validation.suite import validate as findings_of
    from bench.errors import EXIT_SOME_FAILED

    subject = _subject(method, settings, model, dataset, data_dir)
    findings = []
    if not as_json:
        say(f"{subject.name}{f' ({subject.location})' if subject.location else ''} on {model}, {dataset}")
    for finding in findings_of(subject):
        findings.append(finding)
        if not as_json:
            _print_check(finding)
    failed = sum(finding.verdict == "FAIL" for finding in findings)
    if as_json:
        document = {"method": subject.name, "model": model, "dataset": dataset, "failed": failed}
        click.echo(json.dumps({**document, "checks": [asdict(finding) for finding in findings]}, indent=1))
    else:
        say(_verdict(subject.name, failed, findings))
    return EXIT_SOME_FAILED if failed else 0


def _subject(method: str, settings: Sequence[str], model: str, dataset: str, data_dir: Path | None) -> MethodUnderTest:
    """Prepare the method with its options, and a small task.

    Raises:
        BenchError: The method or an option is unknown, which is checked before data are read, or the data are missing.
    """
    from bench.diagnostics.validation.small_task import make_small_task
    from bench.diagnostics.validation.under_test import MethodUnderTest
    from bench.planning.methods import make_method
    from bench.plugins.method_files import with_files

    named = with_files({"methods": [method]})
    (name,) = named["methods"]
    file, options = named.get("method_files", {}).get(name), _options(name, settings)
    make_method(name, options, file)
    small_task = make_small_task(model, dataset, data_dir)
    return MethodUnderTest(name=name, small_task=small_task, options=options, location=file)


def _options(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Read the method's options from the arguments of `--set`.

    Raises:
        BenchError: An argument sets something else.
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


def _print_check(finding: CheckResult) -> None:
    from bench.diagnostics.validation.suite import CHECKS

    width = max(len(check.name) for check in CHECKS)
    see = f" [see {finding.see}]" if finding.see else ""
    tones: dict[str, Tone] = {"pass": "good", "FAIL": "bad"}
    head, tone = f"{finding.verdict:<4}  {finding.check:<{width}}  ", tones.get(finding.verdict, "aside")
    say_item(head, f"{finding.found}{see}", tone=tone)


def _verdict(name: str, failed: int, findings: Sequence[CheckResult]) -> str:
    if failed:
        return f"{failed} of {len(findings)} checks failed"
    skipped = sum(finding.verdict == "n/a" for finding in findings)
    return f"{name} keeps the contract: {len(findings) - skipped} checks passed, {skipped} do not apply"
