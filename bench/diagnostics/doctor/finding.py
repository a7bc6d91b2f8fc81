"""The input of a check of `bench doctor`, and its findings."""

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
    """A finding of a check.

    Attributes:
        check: Name of the check.
        status: `OK`, `WARN` or `PROBLEM`.
        found: Observation in words, on one line.
        remedy: Command to type, or other remedy; empty if nothing has to be done.
    """

    check: str
    status: str
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the JSON form that `bench doctor --json` prints."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """Input of all checks.

    Attributes:
        store: Store to check; it need not exist.
        data_dir: Folder in which data sets are looked for.
        preset: Name of a preset whose requirements are checked.
        study: Name of a study in the store whose requirements are checked.
        thorough: Whether all data sets are read and all files hashed.
    """

    store: Store
    data_dir: Path | None = None
    preset: str | None = None
    study: str | None = None
    thorough: bool = False

    @cached_property
    def spec(self) -> "StudySpec | None":
        """Specification whose requirements are checked; `None` without preset and study.

        Raises:
            BenchError: There is no such preset or study, or both are given.
        """
        from bench.spec.sources import build, read_preset, with_schedule

        if self.preset is not None and self.study is not None:
            raise BenchError(f"--preset {self.preset} and --study {self.study} exclude each other; give one of them")
        if self.preset is not None:
            return build([with_schedule(read_preset(self.preset))])
        return None if self.study is None else build([self.store.load_study(self.study)["spec"]])

    @cached_property
    def torch(self) -> Mapping[str, Any]:
        """Versions and GPUs of PyTorch, from a process of its own, since a broken PyTorch may end its process."""
        return probe_torch()

    @cached_property
    def torch_is_broken(self) -> bool:
        """Whether PyTorch cannot be imported, so that checks that need it cannot be made."""
        return "torch" not in self.torch


Check = Callable[[DoctorRequest], Iterable[Finding]]
"""Function that makes one or more findings."""

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
    """Import PyTorch and torchvision in a process of their own, and return their versions or errors.

    Returns:
        The versions `torch`, `torchvision` and `cuda`, and GPUs as pairs of name and bytes in `cards`, as far as they
        are known; and in `errors` the reasons why either cannot be imported.
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
