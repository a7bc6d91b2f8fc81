"""Checks of `bench doctor` on the machine and the installed packages."""

import os
import platform
import shutil
import socket
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import bench
from bench.diagnostics.doctor.finding import OK, PROBLEM, WARN, Check, DoctorRequest, Finding
from bench.errors import first_line
from bench.outputs.commands import shell
from bench.store.urls import without_password

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_PROJECT = "sbs-bench"
_CONNECT_SECONDS = 2.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def python(_: DoctorRequest) -> Iterator[Finding]:
    """Check that the project supports this version of Python."""
    from packaging.specifiers import SpecifierSet

    required, installed = project()["requires-python"], platform.python_version()
    fits = SpecifierSet(required).contains(installed, prereleases=True)
    remedy = "" if fits else f"make a new environment with Python {required} and install the project in it"
    yield Finding(check="python", status=OK if fits else PROBLEM, found=installed, remedy=remedy)


def project() -> Mapping[str, Any]:
    """Return the project's requirements: from the checkout if there is one, since an installation may be older."""
    file = Path(bench.__file__).resolve().parent.parent / "pyproject.toml"
    if file.is_file():
        declared: Mapping[str, Any] = tomllib.loads(file.read_text())["project"]
        if declared["name"] == _PROJECT:
            return declared
    installed = metadata.metadata(_PROJECT)
    return {
        "requires-python": installed["Requires-Python"],
        "dependencies": installed.get_all("Requires-Dist") or [],
    }


def torch(request: DoctorRequest) -> Iterator[Finding]:
    """Check that PyTorch can be imported."""
    error = request.torch.get("errors", {}).get("torch")
    if error is None:
        yield Finding(check="torch", status=OK, found=f"torch {request.torch['torch']}")
        return
    installed = _version("torch")
    remedy = "pip install torch" if installed is None else f"pip install --force-reinstall torch=={installed}"
    yield Finding(check="torch", status=PROBLEM, found=f"cannot be imported: {first_line(error)}", remedy=remedy)


def torchvision(request: DoctorRequest) -> Iterator[Finding]:
    """Check that torchvision can be imported and fits the installed PyTorch."""
    ours, theirs = _version("torchvision"), _version("torch")
    if ours is None:
        yield Finding(check="torchvision", status=PROBLEM, found="not installed", remedy="pip install torchvision")
        return
    pin = torchvision_pin()
    fits = pin is None or theirs is None or pin.specifier.contains(theirs, prereleases=True)
    pair = [str(pin or "torch"), f"torchvision=={ours}"]
    error = request.torch.get("errors", {}).get("torchvision")
    if not fits:
        found, remedy = f"torchvision {ours} needs {pin}; torch {theirs} is installed", shell("pip", "install", *pair)
        yield Finding(check="torchvision", status=PROBLEM, found=found, remedy=remedy)
    elif error is not None and not request.torch_is_broken:
        nms = "torchvision::nms" in error  # this error means that the binaries were built for another PyTorch
        found = f"was built for another torch than {theirs}" if nms else f"cannot be imported: {first_line(error)}"
        remedy = shell("pip", "install", "--force-reinstall", *pair)
        yield Finding(check="torchvision", status=PROBLEM, found=found, remedy=remedy)
    else:
        yield Finding(check="torchvision", status=OK, found=f"torchvision {ours} fits torch {theirs}")


def torchvision_pin() -> "Requirement | None":
    """Return the installed torchvision's requirement on PyTorch."""
    from packaging.requirements import Requirement

    needs = [Requirement(text) for text in metadata.requires("torchvision") or ()]
    return next((need for need in needs if need.name == "torch"), None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def dependencies(_: DoctorRequest) -> Iterator[Finding]:
    """Check that every required package is installed in a version that the project allows."""
    from packaging.requirements import Requirement

    needs = [Requirement(text) for text in project()["dependencies"]]
    asked = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = 0
    for need in asked:
        installed = _version(need.name)
        if installed is None or not need.specifier.contains(installed, prereleases=True):
            wrong += 1
            words = "it is not installed" if installed is None else f"{installed} is installed"
            yield Finding(
                check="dependencies",
                status=PROBLEM,
                found=f"{need} is needed; {words}",
                remedy=shell("pip", "install", str(need)),
            )
    if not wrong:
        yield Finding(check="dependencies", status=OK, found=f"{len(asked)} packages as required")


def devices(request: DoctorRequest) -> Iterator[Finding]:
    """List CPU cores and GPUs, and check that they include the specification's device."""
    if request.torch_is_broken:
        yield Finding(check="devices", status=WARN, found=f"{cores()} CPU cores; GPUs are unknown without torch")
        return
    cards = request.torch.get("cards") or []
    named = ", ".join(f"{name} ({memory / 1e9:.0f} GB)" for name, memory in cards) or "no CUDA GPU"
    found = f"{cores()} CPU cores, {named}"
    wanted = "" if request.spec is None else request.spec.device
    if wanted.startswith("cuda") and int(wanted.partition(":")[2] or 0) >= len(cards):
        yield Finding(check="devices", status=PROBLEM, found=f"{found}; device '{wanted}' is asked for", remedy=_CPU)
    elif not cards and shutil.which("nvidia-smi") is not None:
        built = request.torch.get("cuda")
        why = "this torch is built without CUDA" if built is None else f"this torch needs a driver for CUDA {built}"
        remedy = "see `nvidia-smi`, and install the torch that fits its driver (pytorch.org/get-started)"
        yield Finding(check="devices", status=WARN, found=f"{found}; a driver is there, {why}", remedy=remedy)
    else:
        yield Finding(check="devices", status=OK, found=found)


_CPU = "add --device cpu"


def cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(request: DoctorRequest) -> Iterator[Finding]:
    """Compute how many runs fit onto the cores at once."""
    from bench.spec.schema import StudySpec

    each = (request.spec or StudySpec()).threads
    setting = os.environ.get("OMP_NUM_THREADS")
    omp = "is not set" if setting is None else f"is {setting}; runs set their own number"
    found = f"{cores()} cores, {each} threads per run: up to --jobs {max(1, cores() // each)}; OMP_NUM_THREADS {omp}"
    if each > cores():
        remedy = f"add --set threads={cores()}; results differ from those with {each} threads"
        yield Finding(check="threads", status=WARN, found=found, remedy=remedy)
    else:
        yield Finding(check="threads", status=OK, found=found)


def tracking(_: DoctorRequest) -> Iterator[Finding]:
    """Check that the MLflow server in the environment variable answers."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        yield Finding(
            check="tracking", status=OK, found="MLFLOW_TRACKING_URI is not set: MLflow's data is in the store"
        )
        return
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if parts.hostname is None or scheme not in _PORTS:
        yield Finding(
            check="tracking", status=OK, found=f"MLFLOW_TRACKING_URI is {without_password(uri)}, on this machine"
        )
        return
    shown = f"{parts.scheme}://{parts.hostname}:{parts.port or _PORTS[scheme]}"  # without the password
    try:
        with socket.create_connection((parts.hostname, parts.port or _PORTS[scheme]), timeout=_CONNECT_SECONDS):
            yield Finding(check="tracking", status=OK, found=f"{shown} of MLFLOW_TRACKING_URI answers")
    except OSError as error:
        remedy = "start it, or `unset MLFLOW_TRACKING_URI`; runs do not need it"
        found = f"{shown} of MLFLOW_TRACKING_URI does not answer: {error.strerror or error}"
        yield Finding(check="tracking", status=WARN, found=found, remedy=remedy)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("python", python),
    ("torch", torch),
    ("torchvision", torchvision),
    ("dependencies", dependencies),
    ("devices", devices),
    ("threads", threads),
    ("tracking", tracking),
)
