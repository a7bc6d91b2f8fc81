"""Schemas of the documents of a store: which types their fields have, so that code that reads them need not ask.

A right checksum says that a document is as it was written, and nothing about who wrote it. A document that does not
have its schema counts as damaged. Fields may be missing, because older versions of the harness did not write all of
them, and there may be others.

Other modules import this one only where they read a document: commands that read none, among them the check of the
installation, need no pydantic.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bench.errors import BenchError
from bench.inputs.names import FileName, StudyName, UnitId

Text: TypeAlias = str | None
Number: TypeAlias = bool | int | float | None
Identity: TypeAlias = Annotated[str, AfterValidator(UnitId)]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 53)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class ListedFile(_Document):
    """Size and checksum of a file of a unit."""

    bytes: Count
    sha256: str


class Record(_Document):
    """The record of a unit."""

    id: Identity | None = None
    status: str
    kind: Text = None
    reason: Text = None
    model: Text = None
    dataset: Text = None
    method: Text = None
    budget: Text = None
    budget_measure: Text = None
    recipe: Text = None
    quantizer: Text = None
    match: Text = None
    started: Text = None
    finished: Text = None
    tuning: Identity | None = None
    seed: Count | None = None
    attempt: Count | None = None
    budget_cost: float | None = None
    nearest_cost: float | None = None
    peak_memory_mb: float | None = None
    tuning_seconds: float | None = None
    seconds: float | None = None
    chosen_trial: Count | None = None
    trials_used: Count | None = None
    trials_diverged: Count | None = None
    within_budget: bool | None = None
    normalized_weights: bool | None = None
    metrics: dict[str, Number] | None = None
    times: dict[str, Number] | None = None
    knobs: dict[str, float] | None = None
    filters: dict[str, Count] | None = None
    options: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None
    fingerprint: dict[str, Any] | None = None
    files: dict[Annotated[str, AfterValidator(FileName)], ListedFile] = {}


class Place(_Document):
    """The row of tables that a unit belongs to."""

    model: Text = None
    dataset: Text = None
    method: str
    budget: Text = None
    seed: Count | None = None


class Costliest(_Document):
    """The costliest policy of a method at a budget."""

    model: str
    dataset: str
    method: str
    budget: Text
    cost: float


class StudyValues(_Document):
    """Those values of a stored specification that are read without making a specification of them."""

    methods: list[str] = []
    method_files: dict[str, str] | None = None
    budgets: list[str] = []
    baseline: str = ""
    further_models: list[str] | None = None
    published: Text = None
    task: dict[str, Any] = {}
    tuning: dict[str, Any] = {}


class StudyAblation(_Document):
    """The runs of one value of an ablated option."""

    key: str
    value: str
    runs: list[Identity]


class Study(_Document):
    """The document of a study."""

    name: Annotated[str, AfterValidator(StudyName)]
    spec: StudyValues
    runs: list[Identity]
    tunings: list[Identity] | None = None
    pretrained: list[Identity] | None = None
    titles: dict[str, str] | None = None
    places: dict[str, Place] | None = None
    costliest: list[Costliest] | None = None
    ablations: list[StudyAblation] | None = None
    one_stage: list[str] | None = None
    method_sources: dict[str, str] | None = None
    data_checksum: Text = None
    created: Text = None
    command: Text = None


class StoredTrial(_Document):
    """The `trial.json` of a trial."""

    number: Count
    knobs: dict[str, float]
    raw_cost: float
    cost: float
    repaired_gates: Count
    within_budget: bool
    validation_top1: float
    validation_loss: float
    validation_images: Count
    seconds: float
    policy: dict[str, Any]
    curves: list[dict[str, Any]]
    record: dict[str, Any]


class StoredSpecification(_Document):
    """The `spec.json` of a unit."""

    id: Identity
    unit: dict[str, Any]
    depends_on: dict[str, Any]
    specification: dict[str, Any]


class LeaseHolder(_Document):
    """The process that has a lease."""

    host: str
    boot: str
    pid: Count
    born: str


class StoredProgress(_Document):
    """The progress that a lease states."""

    phase: Text = None
    epoch: float = 0.0
    epochs: float = 0.0
    done: float = 0.0


class StoredLease(_Document):
    """The file of a lease."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[str, AfterValidator(FileName)]
    token: str
    holder: LeaseHolder
    beat: int
    time: str
    title: str
    progress: StoredProgress = StoredProgress()


def fitting(document: Any, schema: type[BaseModel]) -> dict[str, Any] | None:
    """Return a document if it is an object of a schema; otherwise `None`."""
    if not isinstance(document, Mapping):
        return None
    try:
        fits = schema.__pydantic_validator__.isinstance_python(document)
    except (BenchError, RecursionError):
        return None
    return dict(document) if fits else None
