"""Budgets: their notation, and the window of costs that counts as matched."""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from bench.compression.policy import FULL_PRECISION_BITS, Policy, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.measures import BOPS, Energy, Latency, Measure, MeasuredLatency, Memory
from bench.errors import BenchError
from bench.spec.schema import AcceleratorSpec

PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
"""Multiples in which bit operations are written."""
_NOTATION = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)"
    r"(?:(?P<prefix>[kMGT]?)|(?P<unit>KB|MB|ms|mJ)|(?P<relative>bit|x)(?::(?P<of>KB|ms|mJ))?)"
    r"(?:@(?P<hardware>.*))?",
    re.ASCII | re.DOTALL,
)
_SIZES = {"KB": 1.0, "MB": 1e3, "ms": 1.0, "mJ": 1.0}
_FORMS = (
    "allowed: '4bit' (cost of uniform 4 bit), '2.5bit' (half-way between 2 and 3 bit), '630.6M' (BOPs), "
    "'0.016x' (of full precision), '395KB' (memory), "
    "'21.6ms' (latency), '29.8mJ' (energy), '4bit:KB' and '0.9x:ms' (the same for memory, latency or energy), "
    "'1.2ms@onnxruntime' (on this hardware)"
)


_SET_HARDWARE = "choose it with --set accelerator.hardware=NAME"


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A budget for a network.

    Attributes:
        text: Notation of the user, e.g. "4bit" or "2.5bit".
        limit: Largest cost of a policy, in the measure's unit.
        tolerance: Relative width of the window below the limit.
        measure: Measure of cost that is limited.
    """

    text: str
    limit: float
    tolerance: float
    measure: Measure = BOPS

    @property
    def low(self) -> float:
        """Smallest cost that counts as matched."""
        return (1 - self.tolerance) * self.limit

    def matches(self, cost: float) -> bool:
        """Whether a cost lies inside the window."""
        return self.low <= cost <= self.limit

    def price(self, network: NetworkShape, policy: Policy) -> float:
        """Compute the cost of a policy in the budget's measure."""
        return self.measure.price(network, policy)


def parse_budget(
    text: str, network: NetworkShape, tolerance: float, accelerator: AcceleratorSpec | None = None
) -> Budget:
    """Parse a budget.

    Args:
        text: Budget in one of these forms: `4bit`, `2.5bit`, `630.6M`, `0.016x`, `395KB`, `21.6ms`, `29.8mJ`,
            `4bit:KB`, `0.9x:ms`; in ms and mJ also with the hardware, `1.2ms@onnxruntime`.
        network: Shapes of the network.
        tolerance: Relative width of the window below the limit.
        accelerator: Accelerator that latency and energy are estimated for; the default one if none is given.

    Raises:
        BenchError: The text has none of the forms, the budget exceeds the cost of the costliest uniform network, or the
            times of the accelerator have not been measured.
    """
    measure, limit = _read(text, network, accelerator or AcceleratorSpec())
    bits = measure.costliest_bits(network)
    most = measure.price(network, uniform(network, bits))
    if not 0 < limit <= most:
        raise BenchError(
            f"budget '{text}' is {measure.in_words(limit)}; it must be above 0 and at most what {network.model} costs "
            f"{_at(bits)}, {measure.in_words(most)}"
        )
    return Budget(text=text, limit=limit, tolerance=tolerance, measure=measure)


def number_of(text: str) -> float:
    """Return the number of a budget, for which neither a network nor times that may have to be measured are needed.

    Raises:
        BenchError: The text has none of the forms.
    """
    return float(_parts(text)["number"])


def _parts(text: str) -> re.Match[str]:
    """Split the notation of a budget.

    Raises:
        BenchError: The text has none of the forms.
    """
    found = _NOTATION.fullmatch(text)
    if found is None:
        raise BenchError(f"budget '{text}' is not understood; {_FORMS}")
    return found


def _at(bits: int) -> str:
    return "at full precision" if bits == FULL_PRECISION_BITS else f"at {bits} bits"


def _read(text: str, network: NetworkShape, accelerator: AcceleratorSpec) -> tuple[Measure, float]:
    """Return the measure that a text limits, and the limit."""
    parts = _parts(text)
    unit, hardware = parts["unit"] or parts["of"], parts["hardware"]
    measure: Measure = measure_in(unit, accelerator) if unit else BOPS
    if parts["relative"]:
        limit = _relative(parts["number"], parts["relative"], network, measure)
    elif unit:
        limit = float(parts["number"]) * _SIZES[unit]
    else:
        limit = float(parts["number"]) * PREFIXES[parts["prefix"]]
    if hardware is not None and not measure.on_accelerator:
        raise BenchError(f"budget '{text}': only a budget in ms or mJ depends on hardware; leave out '@{hardware}'")
    if hardware is not None and hardware != accelerator.title:
        raise BenchError(
            f"budget '{text}' is on '{hardware}', but the hardware is '{accelerator.title}'; {_SET_HARDWARE}"
        )
    return measure, limit


def _relative(number: str, kind: str, network: NetworkShape, measure: Measure) -> float:
    """Price `4bit`, uniform bits, or `0.5x`, a share of the costliest uniform network."""
    if kind == "x":
        return float(number) * measure.price(network, uniform(network, measure.max_bits))
    bits = Fraction(number)
    if not 1 <= bits <= measure.max_bits:
        raise BenchError(f"budget '{number}bit': bits go from 1 to {measure.max_bits}")
    return _uniform_cost(bits, network, measure)


def _uniform_cost(bits: Fraction, network: NetworkShape, measure: Measure) -> float:
    """Price uniform bits; 2.5 bit is half-way between the costs of 2 and 3 bit, as no layer has half a bit."""
    low, high = (measure.price(network, uniform(network, number)) for number in (floor(bits), ceil(bits)))
    return low + float(bits - floor(bits)) * (high - low)


def measure_in(unit: str, accelerator: AcceleratorSpec) -> Measure:
    """Return the measure that is written in a unit: KB or MB, ms, or mJ.

    Raises:
        BenchError: It is energy, and times are measured.
    """
    if unit in ("KB", "MB"):
        return Memory()
    if accelerator.measured:
        if unit == "mJ":
            raise BenchError(f"energy is not measured; on '{accelerator.title}' budgets are in ms, e.g. '0.9x:ms'")
        return MeasuredLatency(accelerator)
    return Latency(accelerator) if unit == "ms" else Energy(accelerator)
