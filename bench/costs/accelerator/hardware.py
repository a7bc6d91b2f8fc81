"""Configurations of the accelerator: its array, its buffers, its memory and what each event costs."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from bench.errors import BenchError, unknown_name
from bench.spec.sources import read_toml

_CONFIGURATIONS = resources.files("bench.costs.accelerator").joinpath("configurations")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """An accelerator: its array, its buffers and what each event costs.

    Attributes:
        name: Name of the configuration.
        rows: Number of units that sum over inputs, at the highest precision (N).
        columns: Number of units that compute different outputs (M).
        frequency_hz: Clock frequency.
        dram_bits_per_cycle: Bits that the memory's interface moves per cycle, reads and writes together.
        wbuf_bytes, ibuf_bytes, obuf_bytes: Sizes of the buffers of weights, inputs and outputs; a tile may use half.
        min_bits, max_bits: Lowest and highest precision of the units; fewer bits than `min_bits` save no time.
        core_pj_per_cycle: Energy of the whole array per cycle of computing, independent of bits.
        wbuf_read_pj_per_bit, wbuf_write_pj_per_bit, ibuf_read_pj_per_bit, ibuf_write_pj_per_bit,
            obuf_read_pj_per_bit, obuf_write_pj_per_bit: Energy of the buffers.
        dram_pj_per_bit: Energy of the memory, equal for reads and writes.
    """

    name: str
    rows: int
    columns: int
    frequency_hz: int
    dram_bits_per_cycle: int
    wbuf_bytes: int
    ibuf_bytes: int
    obuf_bytes: int
    min_bits: int
    max_bits: int
    core_pj_per_cycle: float
    wbuf_read_pj_per_bit: float
    wbuf_write_pj_per_bit: float
    ibuf_read_pj_per_bit: float
    ibuf_write_pj_per_bit: float
    obuf_read_pj_per_bit: float
    obuf_write_pj_per_bit: float
    dram_pj_per_bit: float

    @property
    def tile_bits(self) -> tuple[int, int, int]:
        """Largest size in bits of a tile of weights, of inputs and of outputs: half of its buffer."""
        return 4 * self.wbuf_bytes, 4 * self.ibuf_bytes, 4 * self.obuf_bytes


def hardware_names() -> list[str]:
    """List the names of the configurations that come with the harness."""
    files = _CONFIGURATIONS.iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def read_hardware(name: str | Path) -> Hardware:
    """Read a hardware configuration.

    Args:
        name: Name of a configuration that comes with the harness, or path of a TOML file, ending in ".toml".

    Raises:
        BenchError: There is no such configuration or file, or the file has an unknown key or a value that is not
            allowed.
    """
    where = f"the hardware configuration '{name}'"
    if Path(name).suffix == ".toml":
        return _hardware_from(read_toml(Path(name), "hardware configuration"), Path(name).stem, where)
    if name not in hardware_names():
        raise unknown_name("hardware", str(name), hardware_names(), "docs/bitfusion.md")
    text = _CONFIGURATIONS.joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return _hardware_from(tomllib.loads(text), str(name), where)


def _hardware_from(values: Mapping[str, Any], name: str, where: str) -> Hardware:
    types: dict[str, Any] = {field.name: field.type for field in fields(Hardware) if field.name != "name"}
    for key, value in values.items():
        if key not in types:
            raise unknown_name(f"key in {where}", key, types, "docs/bitfusion.md")
        _check_positive(value, types[key], f"{where}: {key}")
    missing = [key for key in types if key not in values]
    if missing:
        raise BenchError(f"{where} lacks {', '.join(missing)}")
    if values["min_bits"] > values["max_bits"]:
        raise BenchError(f"{where}: min_bits is {values['min_bits']}; allowed: at most max_bits, {values['max_bits']}")
    return Hardware(name=name, **values)


def _check_positive(value: Any, kind: type, where: str) -> None:
    allowed = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < math.inf:
        raise BenchError(f"{where} is {value!r}; allowed: a {'whole number' if kind is int else 'number'} above 0")


def fusion_factor(hardware: Hardware, weight_bits: int, activation_bits: int) -> int:
    """Return the number of products that one unit computes per cycle, by which the array's rows are multiplied.

    Raises:
        BenchError: A number of bits is below 1 or above the units' highest precision.
    """
    factor = 1
    for what, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        if not 1 <= bits <= hardware.max_bits:
            raise BenchError(f"{what} is {bits}; allowed on {hardware.name}: 1 to {hardware.max_bits}")
        factor *= hardware.max_bits // max(bits, hardware.min_bits)
    return factor
