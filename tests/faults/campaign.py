"""The long form: hundreds of kills and every other fault, one line for each, and a table of counts at the end.

    python -m tests.faults.campaign --kills 200 --seed 0

All choices follow from the seed. What has been done is kept in `--folder`; the same command goes on from there. The
exit status is 1 when any study did not end as an undisturbed one, or as one clear line told.
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

from tests.faults import damage, places, surroundings
from tests.faults.faults import EQUAL, SKIPPED, TOLD, WRONG, Arena, FaultOutcome
from tests.faults.kills import KillCampaign
from tests.faults.study import Command, Reference, Warm

_KILLS_A_STUDY = 12

Scenario = Callable[[Arena, int], Iterator[FaultOutcome]]


def _damages(kind: str) -> Scenario:
    return lambda arena, seed: damage.damage_faults(arena, seed, damages=(kind,))


SCENARIOS: dict[str, Scenario] = {
    "full disk": lambda arena, _: places.full_disks(arena),
    "disk filled at work": places.disks_filled_at_work,
    "file size limit": lambda arena, _: places.file_size_limits(arena),
    "read-only store": lambda arena, _: places.read_only(arena),
    "unwritable at work": places.unwritable_at_work,
    "bad paths": lambda arena, _: places.bad_paths(arena),
    **{f"damage: {kind}": _damages(kind) for kind in damage.DAMAGES},
    "deleted folders": lambda arena, _: damage.deleted_folders(arena),
    "folders deleted at work": damage.folders_deleted_at_work,
    "clock": lambda arena, _: surroundings.clock_jumps(arena),
    "locked databases": lambda arena, _: surroundings.locked_databases(arena),
    "tracking servers": lambda arena, _: surroundings.servers_gone(arena),
    "lock held": lambda arena, _: surroundings.lock_held(arena),
    "sleepers": lambda arena, _: surroundings.sleepers(arena),
}
"""Everything but kills."""


class Summary:
    """What has been done so far, kept in a file so that a campaign can go on.

    Args:
        path: The file.
        seed: Of the campaign; results of another one are no part of it.
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
        found: dict[str, Any] = self._known["studies"]
        return found

    @property
    def scenarios(self) -> dict[str, list[dict[str, Any]]]:
        """Outcomes by scenario."""
        found: dict[str, list[dict[str, Any]]] = self._known["scenarios"]
        return found

    @property
    def kills(self) -> list[dict[str, Any]]:
        """All kills, with how their study ended."""
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
        """Keep it, with the counts."""
        document = {**self._known, "counts": self.counts()}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(self._path)

    def counts(self) -> dict[str, dict[str, int]]:
        """How often each kind of fault ended how."""
        found: dict[str, Counter[str]] = {}
        for kill in self.kills:
            for line in (
                "kills",
                f"kills of: {kill['role']}",
                f"kills by: {kill['signal']}",
                f"kills at: {kill['moment']}",
                f"kills in: {kill['variant']}",
                *(["kills that left half a file"] if kill["caught"] else []),
            ):
                found.setdefault(line, Counter())[kill["outcome"]] += 1
        for outcome in self.outcomes:
            found.setdefault(outcome["kind"], Counter())[outcome["outcome"]] += 1
        return {kind: dict(counts) for kind, counts in sorted(found.items())}

    def table(self) -> str:
        """The counts, for people."""
        columns = (EQUAL, TOLD, "told", SKIPPED, WRONG)
        counts = self.counts()
        lines = [f"{'':<34}" + "".join(f"{column:>18}" for column in columns)]
        lines += [
            f"{kind:<34}" + "".join(f"{found.get(column, ''):>18}" for column in columns)
            for kind, found in counts.items()
        ]
        wrong_studies = sum(study["outcome"] == WRONG for study in self.studies.values())
        commands = sum(study["commands"] for study in self.studies.values())
        tracebacks = sum(study["untidy"] for study in self.studies.values())
        lines.append(
            f"{len(self.kills)} kills in {len(self.studies)} studies and {commands} commands: {wrong_studies} studies "
            f"wrong, {tracebacks} commands with a traceback; {len(self.outcomes)} other faults"
        )
        return "\n".join(lines)

    @property
    def wrong(self) -> bool:
        """Whether anything did not end as it should."""
        studies = any(study["outcome"] == WRONG for study in self.studies.values())
        return studies or any(outcome["outcome"] == WRONG for outcome in self.outcomes)


def say(text: object) -> None:
    """One line, at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def new_arena(folder: Path, warm: Warm) -> Arena:
    """An arena with an undisturbed study, which is run when the folder has none yet."""
    root = folder / "reference"
    seconds = folder / "reference.seconds"
    if not seconds.exists():
        shutil.rmtree(root, ignore_errors=True)
        ended = Command(root).wait(900)
        if ended.status:
            raise AssertionError(f"the undisturbed study failed: {ended.output}")
        seconds.write_text(f"{ended.seconds}\n")
    return Arena(folder=folder, reference=Reference.of(root), warm=warm, seconds=float(seconds.read_text()))


def run(folder: Path, *, kills: int, seed: int, only: Sequence[str] = ()) -> Summary:
    """Run what has not been done yet.

    Args:
        folder: For stores and the summary.
        kills: At least so many.
        seed: Of all choices.
        only: Names, or their beginnings, of the scenarios to run; "kills" are one. All when empty.
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
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="at least so many (200)")
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
