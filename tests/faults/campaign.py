"""The long campaign: a thousand faults and 300 bad inputs, one line for each, and a table of counts at the end.

    python -m tests.faults.campaign --seed 0

The seed determines all choices. Finished parts are kept in `--folder`, and the same command continues from there. The
exit status is 1 if a study ended neither like an undisturbed one nor with one clear line.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults import damage, inputs, points, storage, surroundings
from tests.faults.faults import CLEAR, EQUAL, REPORTED, SKIPPED, WRONG, Arena, FaultOutcome
from tests.faults.kills import KillCampaign
from tests.faults.study import Command, Reference, Warm

_KILLS_A_STUDY = 12
_POINTS = (
    *(("kill", part, 25) for part in range(8)),
    *(("full", part, 25) for part in range(4)),
    *(("terminate", 0, 25), ("interrupt", 0, 25)),
)
"""What happens at points of a study, and how often: parts that are finished are not repeated."""
_EACH_COMMAND = 12
"""Largest number of faults of each kind in each of the commands besides `bench run`."""

Scenario = Callable[[Arena, int], Iterator[FaultOutcome]]


def _damages(kind: str) -> Scenario:
    return lambda arena, seed: damage.damage_faults(arena, seed, damages=(kind,))


def _points(action: str, part: int, count: int) -> Scenario:
    return lambda arena, seed: points.points_of_a_study(arena, 100 * seed + part, action, count)


def _of_command(name: str) -> Scenario:
    return lambda arena, _: points.points_of_a_command(arena, name, _EACH_COMMAND, ("kill", "interrupt", "full"))


SCENARIOS: dict[str, Scenario] = {
    "bad inputs": lambda arena, seed: inputs.bad_inputs(arena, seed, 300),
    **{f"points: {action} {part}": _points(action, part, n) for action, part, n in _POINTS},
    **{f"points of bench {name}": _of_command(name) for name in points.COMMANDS},
    "clock between points": surroundings.clock_between_points,
    "full disk": lambda arena, _: storage.full_disks(arena),
    "disk filled at work": storage.disks_filled_at_work,
    "file size limit": lambda arena, _: storage.file_size_limits(arena),
    "read-only store": lambda arena, _: storage.read_only(arena),
    "unwritable at work": storage.unwritable_at_work,
    "bad paths": lambda arena, _: storage.bad_paths(arena),
    **{f"damage: {kind}": _damages(kind) for kind in damage.DAMAGES},
    "deleted folders": lambda arena, _: damage.deleted_folders(arena),
    "folders deleted at work": damage.folders_deleted_at_work,
    "clock": lambda arena, _: surroundings.clock_jumps(arena),
    "locked databases": lambda arena, _: surroundings.locked_databases(arena),
    "tracking servers": lambda arena, _: surroundings.servers_gone(arena),
    "lock held": lambda arena, _: surroundings.lock_held(arena),
    "sleepers": lambda arena, _: surroundings.sleepers(arena),
}
"""All faults except kills."""


class Summary:
    """Finished parts of a campaign, kept in a file so that it can be continued.

    Args:
        path: Path of the file.
        seed: Seed of the campaign; results of another seed are dropped.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if known.get("seed") != seed:
            known = {"seed": seed, "studies": {}, "scenarios": {}}
        self._known = known

    @property
    def studies(self) -> dict[str, Any]:
        """Killed studies by number."""
        studies: dict[str, Any] = self._known["studies"]
        return studies

    @property
    def scenarios(self) -> dict[str, list[dict[str, Any]]]:
        """Outcomes by scenario."""
        scenarios: dict[str, list[dict[str, Any]]] = self._known["scenarios"]
        return scenarios

    @property
    def kills(self) -> list[dict[str, Any]]:
        """All kills, with the outcome of their study."""
        return [
            {**kill, "variant": study["variant"], "outcome": study["outcome"]}
            for study in self.studies.values()
            for kill in study["kills"]
        ]

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        """All other faults."""
        return [outcome for outcomes in self.scenarios.values() for outcome in outcomes]

    def write(self) -> None:
        """Write the file, with the counts."""
        document = {**self._known, "counts": self.counts()}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(self._path)

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the outcomes of each kind of fault."""
        counters: dict[str, Counter[str]] = {}
        for kill in self.kills:
            for line in (
                "kills",
                f"kills of: {kill['role']}",
                f"kills by: {kill['signal']}",
                f"kills at: {kill['moment']}",
                f"kills in: {kill['variant']}",
                *(["kills that left half a file"] if kill["caught"] else []),
            ):
                counters.setdefault(line, Counter())[kill["outcome"]] += 1
        for outcome in self.outcomes:
            counters.setdefault(outcome["kind"], Counter())[outcome["outcome"]] += 1
        return {kind: dict(counts) for kind, counts in sorted(counters.items())}

    def table(self) -> str:
        """Write the counts as a table for people."""
        columns = (EQUAL, REPORTED, CLEAR, SKIPPED, WRONG)
        counts = self.counts()
        lines = [f"{'':<34}" + "".join(f"{column:>22}" for column in columns)]
        lines += [
            f"{kind:<34}" + "".join(f"{outcomes.get(column, ''):>22}" for column in columns)
            for kind, outcomes in counts.items()
        ]
        bad = sum(outcome["kind"].startswith("bad input") for outcome in self.outcomes)
        wrong_studies = sum(study["outcome"] == WRONG for study in self.studies.values())
        commands = sum(study["commands"] for study in self.studies.values())
        tracebacks = sum(study["untidy"] for study in self.studies.values())
        lines.append(
            f"{len(self.kills)} kills in {len(self.studies)} studies and {commands} commands: {wrong_studies} studies "
            f"wrong, {tracebacks} commands with a traceback; {len(self.outcomes) - bad} other faults; {bad} bad inputs"
        )
        return "\n".join(lines)

    @property
    def wrong(self) -> bool:
        """Whether a fault had a wrong outcome."""
        studies = any(study["outcome"] == WRONG for study in self.studies.values())
        return studies or any(outcome["outcome"] == WRONG for outcome in self.outcomes)


def say(text: object) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def new_arena(folder: Path, warm: Warm) -> Arena:
    """Make an arena with an undisturbed study, which is run if the folder does not have one yet."""
    root = folder / "reference"
    seconds = folder / "reference.seconds"
    if not seconds.exists():
        shutil.rmtree(root, ignore_errors=True)
        ended = Command(root).wait(900)
        if ended.status:
            raise AssertionError(f"the undisturbed study failed: {ended.output}")
        seconds.write_text(f"{ended.seconds}\n")
    return Arena(folder=folder, reference=Reference.from_store(root), warm=warm, seconds=float(seconds.read_text()))


def run(folder: Path, *, kills: int, seed: int, only: Sequence[str] = ()) -> Summary:
    """Run the parts of a campaign that are not finished.

    Args:
        folder: Folder for stores and the summary.
        kills: Least number of kills.
        seed: Seed of all choices.
        only: Names of the scenarios to run, or their beginnings; "kills" is one of them. All when empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = Summary(folder / "summary.json", seed)
    with Warm(folder) as warm:
        arena = new_arena(folder, warm)
        say(f"an undisturbed study takes {arena.seconds:.0f} s")
        for name, scenario in SCENARIOS.items():
            if name in summary.scenarios or not _asked(name, only):
                continue
            outcomes = []
            for outcome in scenario(arena, seed):
                say(outcome)
                outcomes.append(asdict(outcome))
            summary.scenarios[name] = outcomes
            summary.write()
        campaign = KillCampaign(arena, seed, say)
        while _asked("kills", only) and len(summary.kills) < kills:
            number = len(summary.studies)
            study = campaign.study(number, min(_KILLS_A_STUDY, kills - len(summary.kills)))
            summary.studies[str(number)] = study.to_json()
            summary.write()
            say(
                f"study {number} ({study.variant}): {len(study.kills)} kills, {study.commands} commands: "
                f"{study.outcome} {study.detail} ({study.seconds:.0f} s)"
            )
    return summary


def _asked(name: str, only: Sequence[str]) -> bool:
    return not only or any(name.startswith(beginning) for beginning in only)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=150, help="least number of kills at random moments (150)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="for stores and summary.json (build/faults-SEED)")
    parser.add_argument("--only", default="", help=f"some of: kills, {', '.join(SCENARIOS)}")
    asked = parser.parse_args()
    os.nice(5)
    folder = asked.folder or Path("build") / f"faults-{asked.seed}"
    only = [name.strip() for name in asked.only.split(",") if name.strip()]
    summary = run(folder.resolve(), kills=asked.kills, seed=asked.seed, only=only)
    say(f"summary: {folder / 'summary.json'}\n{summary.table()}")
    sys.exit(1 if summary.wrong else 0)


if __name__ == "__main__":
    main()
