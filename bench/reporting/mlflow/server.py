"""MLflow's server, started for one command: who may reach it, and how it ends."""

import http.client
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.errors import BenchError
from bench.reporting.mlflow import guard
from bench.reporting.mlflow.artifacts import artifact_root
from bench.store.urls import without_secrets

DATABASE = "MLFLOW_BACKEND_STORE_URI"
"""Environment variable from which MLflow's server takes its database."""
NO_LOGIN = (
    "MLflow has no login: everybody who can reach this port can read, change and delete everything in MLflow's data"
)
_HOSTS, _ORIGINS = "MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"
"""Environment variables with which a user allows other names of the machine, and pages of other servers."""
_LEFT_OUT = frozenset({"MLFLOW_RUN_ID", "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"})
"""Environment variables that the server does not get."""
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
_HTTP_PORT = 80


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server listens.

    Attributes:
        host: Name or number of the address.
        port: Port.
    """

    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it.

        Raises:
            BenchError: The name has no address.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise BenchError(f"--host '{self.host}' has no address: {error}; give one of this machine") from error
        return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)

    @property
    def url(self) -> str:
        """The URL for a browser; for a server that listens on all addresses, with the name of the machine."""
        return f"http://{_in_url(socket.gethostname() if self.host in _EVERYWHERE else self.host)}:{self.port}"

    def names(self) -> list[str]:
        """Return all values of the header `Host` with which this server may be asked, the port included.

        A page of another site that has a name for this machine (DNS rebinding) asks with its own name. MLflow's default
        has patterns such as `10.*`, which match names like `10.example.org`; these here are exact.
        """
        hosts = [*_LOCAL_NAMES, _in_url(self.host), *(() if self.is_local else map(_in_url, _names_of_machine()))]
        bare = hosts if self.port == _HTTP_PORT else []
        return list(dict.fromkeys([*(f"{host}:{self.port}" for host in hosts), *bare]))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _names_of_machine() -> Iterator[str]:
    """Yield the names and numbers by which other machines know this one, as far as it knows them itself."""
    name = socket.gethostname()
    yield name
    yield socket.getfqdn()
    with suppress(OSError):
        yield from (str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))


def check_access(address: Address, *, public: bool) -> None:
    """Make sure that a server that other machines can reach is what the user wants.

    Raises:
        BenchError: Other machines could reach it, and the user has not allowed this, or the other way round.
    """
    if public and address.is_local:
        raise BenchError(f"--public has no effect with --host {address.host}; add --host 0.0.0.0, or leave it out")
    if not public and not address.is_local:
        raise BenchError(
            f"--host {address.host} lets other machines in. {NO_LOGIN}; add --public if this is what you want, or "
            "leave --host out and reach this machine with ssh -L"
        )


def server_command(store_root: Path, address: Address) -> list[str]:
    """Return the command that serves MLflow's user interface, with one worker for one person.

    Every user of the machine can read commands, so the database is not in it: it is in the variable `DATABASE`.
    """
    artifacts, names = artifact_root(store_root).as_uri(), address.names()
    return [
        *(sys.executable, "-m", "mlflow", "ui"),
        *("--default-artifact-root", artifacts, "--artifacts-destination", artifacts),
        *("--host", address.host, "--port", str(address.port), "--workers", "1"),
        *(() if os.environ.get(_HOSTS) else ("--allowed-hosts", ",".join(names))),
        *(() if os.environ.get(_ORIGINS) else ("--cors-allowed-origins", ",".join(f"http://{name}" for name in names))),
    ]


def require_free_port(address: Address) -> None:
    """Make sure that a server can listen.

    Raises:
        BenchError: It cannot.
    """
    family, kind, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            hint = f"choose another port with --port, e.g. {address.port % 65535 + 1}"
            raise BenchError(f"cannot listen on {address.host}:{address.port}: {error.strerror}; {hint}") from error


def start_server(command: list[str], uri: str, address: Address, timeout: float) -> "subprocess.Popen[bytes]":
    """Start a server in a process group of its own, and wait until it answers.

    The group ends with this process, however this ends: see `bench.reporting.mlflow.guard`.

    Args:
        command: Command that serves.
        uri: Address of the database.
        address: Host and port on which the server listens.
        timeout: Seconds to wait for the first answer.

    Raises:
        BenchError: It does not start.
    """
    environment = {key: value for key, value in os.environ.items() if key not in _LEFT_OUT}
    environment[DATABASE] = uri
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 - the command is ours
            [sys.executable, "-I", guard.__file__, *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _await_server(process, address, timeout)
        except BaseException as error:
            stop_server(process)
            if isinstance(error, TimeoutError):
                raise BenchError(f"MLflow's user interface did not start: {_last_line(output)}") from error
            raise
    return process


def stop_server(process: "subprocess.Popen[bytes]") -> None:
    """Stop a server and its workers."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return


def _await_server(process: "subprocess.Popen[bytes]", address: Address, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


def _answers(address: Address) -> bool:
    """Return whether the server is ready; the request avoids the user's proxy, which could not reach it."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return without_secrets(lines[-1]) if lines else "it printed no message"
