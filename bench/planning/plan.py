"""Plan of a study: the pretrainings, tunings and runs that it consists of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import replicas
from bench.compression.policy import FULL_PRECISION_BITS
from bench.compression.shapes import NetworkShape
from bench.costs.accelerator.hardware import read_hardware
from bench.costs.budget import Budget, parse_budget
from bench.costs.measured import times_on
from bench.errors import BenchError
from bench.method import Method
from bench.planning.budgets import Reach, check_spendable, reaches
from bench.planning.builder import UnitBuilder
from bench.planning.methods import method_of_study
from bench.planning.networks import task_network
from bench.planning.units import RunUnit, TuningUnit, Unit
from bench.planning.variants import Variant, in_words, variants
from bench.plugins.entry_points import find
from bench.spec.schema import StudySpec
from bench.store.files import UnitKind


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One value of an ablated option, on all models.

    Attributes:
        key, value: Option and value in words; both empty for the study without changes.
        runs: Identities of its runs. Where the value is the default, these are runs of the study without changes.
    """

    key: str
    value: str
    runs: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All units of a study, in the order in which they are worked on.

    Attributes:
        spec: Specification of the study.
        network: Shapes of its first model.
        pretrainings, tunings, runs: Units, each once.
        ablations: The runs of the study without changes, and of each value of an ablated option.
        reaches: Costs that each method can have at each budget.
    """

    spec: StudySpec
    network: NetworkShape
    pretrainings: Sequence[Unit]
    tunings: Sequence[TuningUnit]
    runs: Sequence[RunUnit]
    ablations: Sequence[Ablation] = ()
    reaches: Sequence[Reach] = ()

    @property
    def most_trials(self) -> int:
        """Largest number of trials of a tuning; 0 when nothing is tuned."""
        return max((unit.trials for unit in self.tunings), default=0)


def make_plan(spec: StudySpec) -> Plan:
    """Plan a study.

    Args:
        spec: Specification with a resolved device.

    Raises:
        BenchError: A name is unknown, an option or a budget is not allowed, a method cannot do what is asked, or a
            budget is above the costliest network of every method.
    """
    _check_devices(spec)
    _check_names(spec)
    pretrainings: dict[str, Unit] = {}
    tunings: dict[str, TuningUnit] = {}
    runs: dict[str, RunUnit] = {}
    members: dict[tuple[str, str], list[str]] = {}
    found: list[Reach] = []
    for variant in variants(spec):
        builder = UnitBuilder(variant.spec, variant.label, pretrainings, tunings)
        units = [runs.setdefault(unit.identity, unit) for unit in _runs(variant, builder)]
        value = in_words(variant.value) if variant.key else ""
        members.setdefault((variant.key, value), []).extend(unit.identity for unit in units)
        here = reaches(variant.spec, variant.methods, variant.label)
        if not variant.key:
            check_spendable(here)
        found += here
    return Plan(
        spec=spec,
        network=task_network(spec.task),
        pretrainings=list(pretrainings.values()),
        tunings=list(tunings.values()),
        runs=list(runs.values()),
        ablations=[Ablation(key=key, value=value, runs=ids) for (key, value), ids in members.items()],
        reaches=found,
    )


def phases(plan: Plan) -> Sequence[tuple[UnitKind, Sequence[Unit]]]:
    """Return the units by kind, in the order in which the kinds depend on each other.

    Runs are ordered by seed, so that a study can be compared before all its seeds are done.
    """
    runs = sorted(plan.runs, key=lambda unit: unit.seed)
    return (("pretrained", plan.pretrainings), ("tuning", plan.tunings), ("runs", runs))


def _runs(variant: Variant, builder: UnitBuilder) -> Iterator[RunUnit]:
    """Yield the runs of one variant, by budget, method and seed."""
    spec = variant.spec
    network = task_network(spec.task)
    for number, text in enumerate(spec.budgets):
        budget = parse_budget(text, network, spec.tuning.tolerance, spec.accelerator)
        for name in variant.methods:
            method = method_of_study(spec, name)
            _check_measure(name, method, budget)
            if method.capabilities.budget == "ignored" and number:
                continue
            for seed in spec.seeds:
                yield builder.run(name, method, budget, seed)


def _check_measure(name: str, method: Method, budget: Budget) -> None:
    """Make sure that the cost of every policy of a method can be computed in the budget's measure."""
    if budget.measure.max_bits < FULL_PRECISION_BITS and method.capabilities.full_precision:
        raise BenchError(
            f"budget '{budget.text}': {name} prunes at full precision, which the accelerator cannot compute; leave it "
            "out with --methods, or give a budget of BOPs or of memory, e.g. '4bit' or '395KB'"
        )


def _check_names(spec: StudySpec) -> None:
    """Make sure that what is needed only when a run ends, or in the report, exists."""
    if spec.accelerator.measured:
        times_on(spec.accelerator)
    else:
        read_hardware(spec.accelerator.hardware)
    if spec.baseline not in spec.methods:
        find("methods", spec.baseline)


def _check_devices(spec: StudySpec) -> None:
    """Make sure that runs can be divided among devices, if that is asked for."""
    if spec.devices == 1:
        return
    replicas.check_available()
    unable = [name for name in spec.methods if not method_of_study(spec, name).capabilities.data_parallel]
    if unable:
        raise BenchError(
            f"--devices {spec.devices}: {', '.join(unable)} cannot use several devices in one run; use --devices 1 "
            "(--jobs works on several runs at once), or leave these methods out with --methods"
        )
