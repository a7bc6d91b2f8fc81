"""Run all checks of `bench doctor`.

The checks are independent: if one fails, it reports the reason, and the others still run. Packages that may be broken
are imported only inside the checks that need them.
"""

from collections.abc import Iterator

from bench.diagnostics.doctor import environment, health, plugins, store
from bench.diagnostics.doctor.finding import PROBLEM, WARN, Check, DoctorRequest, Finding
from bench.errors import first_line


def examine(request: DoctorRequest) -> Iterator[Finding]:
    """Yield the findings of all checks, each as soon as it is made.

    Raises:
        BenchError: There is no such preset or study.
    """
    if request.preset is not None or request.study is not None:
        _ = request.spec
    for name, check in _checks():
        yield from _findings(name, check, request)


def _checks() -> list[tuple[str, Check]]:
    return [*environment.CHECKS, *plugins.CHECKS, *store.CHECKS, *health.CHECKS]


def _findings(name: str, check: Check, request: DoctorRequest) -> Iterator[Finding]:
    try:
        yield from check(request)
    except ModuleNotFoundError as error:
        remedy = f"pip install {str(error.name).partition('.')[0]}"
        yield Finding(check=name, status=PROBLEM, found=f"cannot be checked: {error}", remedy=remedy)
    except Exception as error:
        reason = first_line(error)
        yield Finding(check=name, status=WARN, found=f"cannot be checked: {type(error).__name__}: {reason}")
