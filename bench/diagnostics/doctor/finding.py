"""What a check of `bench doctor` is asked and what it answers."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.store.files import Store

if TYPE_CHECKING:
    from bench.spec.schema import StudySpec

OK, WARN, PROBLEM = "ok", "warn", "PROBLEM"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was looked at.
        status: `OK`, `WARN` or `PROBLEM`.
        found: In words, on one line.
        remedy: What to type or do; empty when there is nothing to do.
    """

    check: str
    status: str
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """For `bench doctor --json`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """What is to be examined.

    Attributes:
        store: The store, which need not be there.
        data_dir: Where data sets are looked for.
        preset, study: A specification whose needs are checked: a preset's, or that of a study in the store.
        thorough: Read all data sets and hash all files.
    """

    store: Store
    data_dir: Path | None = None
    preset: str | None = None
    study: str | None = None
    thorough: bool = False

    @cached_property
    def spec(self) -> "StudySpec | None":
        """The specification whose needs are checked; `None` when none is named.

        Raises:
            BenchError: There is no such preset or study, or both are named.
        """
        from bench.spec.sources import build, read_preset, with_schedule

        if self.preset is not None and self.study is not None:
            raise BenchError(f"--preset {self.preset} and --study {self.study} exclude each other; give one of them")
        if self.preset is not None:
            return build([with_schedule(read_preset(self.preset))])
        return None if self.study is None else build([self.store.load_study(self.study)["spec"]])

    @cached_property
    def torch(self) -> Mapping[str, Any]:
        """What a process of its own says of PyTorch, which may be so broken that it takes its process with it."""
        return probe_torch()

    @cached_property
    def torch_is_broken(self) -> bool:
        """Whether what needs PyTorch cannot be checked."""
        return "torch" not in self.torch


Check = Callable[[DoctorRequest], Iterable[Finding]]


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first of some names, and how many more there are."""
    listed = list(names)
    more = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {more} more" if more > 0 else "")


_PROBE_SECONDS = 180.0

_PROBE = """
import json
found = {}
try:
    import torch
    found["torch"] = torch.__version__
    found["cuda"] = torch.version.cuda
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    properties = [torch.cuda.get_device_properties(card) for card in cards]
    found["cards"] = [[entry.name, entry.total_memory] for entry in properties]
except Exception as error:
    found.setdefault("errors", {})["torch"] = f"{type(error).__name__}: {error}"
try:
    import torchvision
    found["torchvision"] = torchvision.__version__
except Exception as error:
    found.setdefault("errors", {})["torchvision"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(found))
"""


def probe_torch() -> dict[str, Any]:
    """Import PyTorch and torchvision in a process of their own and say what came of it.

    Returns:
        The versions `torch`, `torchvision` and `cuda` and the `cards` as (name, bytes), as far as they are known;
        in `errors`, what kept either from being imported.
    """
    import json

    try:
        ended = subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
        answer: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"errors": {"torch": f"importing it takes more than {_PROBE_SECONDS:.0f} s"}}
    except (IndexError, ValueError):
        return {"errors": {"torch": f"importing it ends the process ({_exit_words(ended.returncode)})"}}
    return answer


def _exit_words(status: int) -> str:
    import signal

    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
