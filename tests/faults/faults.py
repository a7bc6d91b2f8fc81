"""What all kinds of faults share: the stores to try them on, and the judgement of their outcome."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.study import Command, Ended, Reference, Warm, new_token

EQUAL = "equal"
"""The command ended with the same results as an undisturbed study."""
REPORTED = "reported, then equal"
"""The command ended with one clear line. After doing what the line says, the same command ended with equal results."""
CLEAR = "reported"
"""The command ended with one clear line, as it must."""
SKIPPED = "skipped"
"""The fault cannot be caused on this machine."""
WRONG = "WRONG"


@dataclass(frozen=True, kw_only=True)
class FaultOutcome:
    """Outcome of a fault.

    Attributes:
        kind: Kind of fault, by which outcomes are counted.
        fault: Description of the fault.
        outcome: One of the words above.
        detail: Observations.
        seconds: Wall time.
    """

    kind: str
    fault: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        detail = f" — {self.detail}" if self.detail else ""
        return f"{self.kind}: {self.fault}: {self.outcome}{detail} ({self.seconds:.0f} s)"


@dataclass
class Arena:
    """Stores and commands to try faults on.

    Attributes:
        folder: Folder for stores.
        reference: Results of an undisturbed study.
        warm: Server that runs commands quickly.
        seconds: Time that a command in a process of its own took for the study when last measured.
        bases: Stores to start from, made when first needed.
    """

    folder: Path
    reference: Reference
    warm: Warm
    seconds: float = 30.0
    bases: dict[str, Path] = field(default_factory=dict)

    def fresh(self) -> Path:
        """Return a path for a new store."""
        return self.folder / f"store-{new_token()[:8]}"

    def copy(self, base: str = "finished") -> Path:
        """Copy the finished store, or the interrupted one."""
        store = self.fresh()
        shutil.copytree(self.finished if base == "finished" else self.interrupted, store, symlinks=True)
        return store

    @property
    def finished(self) -> Path:
        """Store of the undisturbed study."""
        return self.reference.root

    @property
    def interrupted(self) -> Path:
        """Store whose command was killed in the middle of a run that has checkpoints."""
        if "interrupted" not in self.bases:
            self.bases["interrupted"] = self._interrupted()
        return self.bases["interrupted"]

    def _interrupted(self) -> Path:
        for _ in range(20):
            store = self.folder / "interrupted"
            shutil.rmtree(store, ignore_errors=True)
            command = Command(store)
            while command.running and not any(store.glob("runs/*/checkpoints/finetune.*.pt")):
                time.sleep(0.01)
            command.kill_all()
            checkpoints = list(store.glob("runs/*/checkpoints/finetune.*.pt"))
            if checkpoints and any(store.glob("leases/runs-*.json")):
                (checkpoints[0].parents[1] / "error.txt").write_text("of an earlier attempt\n")
                return store
        raise AssertionError("no run could be stopped while it had checkpoints")

    def remove(self, store: Path) -> None:
        """Remove a store and the logs of its commands."""
        shutil.rmtree(store, ignore_errors=True)
        for log in self.folder.glob(f"{store.name}.*.log"):
            log.unlink()

    def judge(
        self,
        store: Path,
        ended: Ended,
        remedy: Callable[[], object] = lambda: None,
        *,
        tracking: bool = True,
        left_out: Sequence[str] = (),
        statuses: Sequence[int] = (0, 1, 2),
    ) -> tuple[str, str]:
        """Judge the outcome of a fault.

        Args:
            store: Store after a command that met the fault.
            ended: End of that command.
            remedy: Function that does what the error message asks for.
            tracking: Whether MLflow must be up to date at the end.
            left_out: Beginnings of paths in the store that are not compared.
            statuses: Exit statuses that the command may have.

        Returns:
            The outcome, and observations.
        """
        seen = f"exit {ended.status}"
        if "Traceback" in ended.output:
            return WRONG, f"{seen} with a traceback: {_short(ended.output)}"
        if ended.status not in statuses:
            return WRONG, f"{seen}: {_short(ended.output)}"
        reported = ended.status != 0
        if ended.status == 2:
            if not ended.is_clear:
                return WRONG, f"{seen} without a clear line: {_short(ended.output)}"
            seen += f" '{ended.last_line[:160]}'"
        if reported:
            remedy()
            again = self.warm.run(store)
            if again.status != 0 or "Traceback" in again.output:
                return WRONG, f"{seen}, and the same command again: exit {again.status}: {_short(again.output)}"
        wrong = self.reference.differences(store, tracking=tracking, left_out=left_out) or self.views(store)
        if wrong:
            return WRONG, f"{seen}; {'; '.join(wrong[:3])}"
        return REPORTED if reported else EQUAL, seen

    def views(self, store: Path) -> list[str]:
        """Describe what is wrong with `bench status` and `bench report` of a store."""
        wrong = []
        for name in ("status", "report"):
            ended = self.warm.bench(name, "--store", str(store))
            if ended.status or "Traceback" in ended.output:
                wrong.append(f"bench {name}: exit {ended.status}: {_short(ended.output)}")
        return wrong


def _short(output: str) -> str:
    """Return the end of an output as one line."""
    return " | ".join(output.strip().splitlines()[-4:])[-500:]
