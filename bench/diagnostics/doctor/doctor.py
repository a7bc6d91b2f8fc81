"""Find out what is wrong with this machine, the installation, the data sets and a store, and what to do about it.

Each check answers for itself: one that fails says why, and the others go on. Nothing here imports what may be
broken before a check asks for it.
"""

from collections.abc import Iterator

from bench.diagnostics.doctor import environment, health, plugins, store
from bench.diagnostics.doctor.finding import PROBLEM, WARN, Check, DoctorRequest, Finding
from bench.errors import first_line


def examine(visit: DoctorRequest) -> Iterator[Finding]:
    """All findings, each as soon as it is there.

    Raises:
        BenchError: The preset or study that is named does not exist.
    """
    if visit.preset is not None or visit.study is not None:
        _ = visit.spec
    for name, check in _checks():
        yield from _findings(name, check, visit)


def _checks() -> list[tuple[str, Check]]:
    return [*environment.CHECKS, *plugins.CHECKS, *store.CHECKS, *health.CHECKS]


def _findings(name: str, check: Check, visit: DoctorRequest) -> Iterator[Finding]:
    try:
        yield from check(visit)
    except ModuleNotFoundError as error:
        remedy = f"pip install {str(error.name).partition('.')[0]}"
        yield Finding(check=name, status=PROBLEM, found=f"cannot be checked: {error}", remedy=remedy)
    except Exception as error:
        reason = first_line(error)
        yield Finding(check=name, status=WARN, found=f"cannot be checked: {type(error).__name__}: {reason}")
