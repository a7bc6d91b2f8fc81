"""Documents of exports in a store: how they are read, with fields of known types."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bench.inputs.names import FileName, UnitId, inside
from bench.store.files import Store, read_checked
from bench.store.schemas import fitting

DOCUMENT = "export.json"
FOLDER = "exports"
"""Folder of the store with what was exported, one folder for each run."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore")


Whole = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,12}$")]
Real = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]
Classes = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}( [0-9]{1,9})*$")]


class StoredAgreement(_Document):
    """How a form agrees with the harness in one engine."""

    engine: str
    version: str | None = None
    images: int
    equal: int
    traced: int
    broken: bool
    differing: dict[Whole, int] | None = None


class StoredForm(_Document):
    """A form: the bytes of its files, of which the network is the first, and how it agrees."""

    files: Annotated[dict[str, int], Field(min_length=1)]
    sha256: dict[str, str] = {}
    agreements: Annotated[list[StoredAgreement], Field(min_length=1)]


class StoredTime(_Document):
    """Measured time of a form in one engine, and quartiles of its ratio to the float network."""

    form: str
    engine: str
    version: str
    batch: int
    milliseconds: Real
    ratio: tuple[Real, Real, Real]


class StoredCosts(_Document):
    """Costs by the counter, and the bytes of the float parameters."""

    bops: Real
    memory_kb: Real | None = None
    full_precision_bops: Real
    float_parameter_bytes: int
    simulated_latency_ms: Real | None = None


class StoredExport(_Document):
    """What an export of a run was found to be.

    Attributes:
        checksum: Checksum of the document.
        run: Id of the run.
        counted: Costs by the counter.
        forms: Forms by name.
        measured: Measured times.
    """

    checksum: str
    run: str
    model: str | None = None
    dataset: str | None = None
    method: str | None = None
    recorded_top1: Percent | None = None
    predictions: Classes | None = None
    counted: StoredCosts
    forms: dict[str, StoredForm]
    measured: list[StoredTime] = []


def export_folder(store: Store, run: str) -> Path:
    """Return the folder of a run's export in a store."""
    return inside(store.root, FileName(FOLDER), UnitId(run))


def read_export(store: Store, run: str) -> StoredExport | None:
    """Read the document of a run's export; `None` if there is none, or if it is damaged."""
    return read_document(export_folder(store, run) / DOCUMENT)


def read_document(path: Path) -> StoredExport | None:
    """Read the document of an export; `None` if there is none, or if it is damaged."""
    document = fitting(read_checked(path), StoredExport)
    return None if document is None else StoredExport.model_validate(document)
