"""Where a specification's values come from: presets, schedules, TOML files and `--set`.

Precedence, lowest first: defaults, the schedule that a preset names, preset or specification file (TOML), `--schedule`,
`--set key=value`, flags.
"""

import codecs
import json
import tomllib
from collections.abc import Iterable, Mapping
from functools import reduce
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.errors import BenchError, printable, unknown_name
from bench.inputs.reading import DEEPEST, TEXT_BYTES, is_deep, read_bytes
from bench.outputs.commands import command
from bench.plugins.method_files import with_files
from bench.spec.options import explain
from bench.spec.schema import StudySpec

_PRESETS = "bench.spec.presets"
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is the beginning of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by byte-order mark."""


def build(layers: Iterable[Mapping[str, Any]]) -> StudySpec:
    """Build the specification from layers of values, lowest precedence first.

    Raises:
        BenchError: A key is unknown, or a value is not allowed.
    """
    checked = list(layers)
    if any(map(is_deep, checked)):
        raise BenchError(f"the specification has values that are nested more than {DEEPEST} deep")
    values = with_files(reduce(merge, checked, {}))
    try:
        return StudySpec.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise explain(error, "", StudySpec) from error


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `base` in which values of `over` take precedence, table by table."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def nested(path: str, value: Any) -> dict[str, Any]:
    """Put a value under a path of keys: `nested("search.epochs", 3)` is `{"search": {"epochs": 3}}`.

    Raises:
        BenchError: The path has more keys than any specification.
    """
    if path.count(".") >= DEEPEST:
        raise BenchError(f"the key '{printable(path)}' has more than {DEEPEST} parts; see `{command('list', 'keys')}`")
    key, *inner = path.split(".", 1)
    return {key: nested(inner[0], value) if inner else value}


# --- presets and their schedules ---------------------------------------------------------------------------------


def preset_names() -> list[str]:
    """List the names of the presets that come with the harness."""
    files = resources.files(_PRESETS).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Read a preset's values.

    Raises:
        BenchError: There is no such preset.
    """
    if name not in preset_names():
        raise unknown_name("preset", name, preset_names(), "bench list presets")
    return tomllib.loads(_preset_text(name))


def preset_summary(name: str) -> str:
    """Return a preset's purpose: the comment at the top of its file."""
    comment = takewhile(lambda line: line.startswith("#"), _preset_text(name).splitlines())
    return " ".join(line.lstrip("# ").strip() for line in comment)


def _preset_text(name: str) -> str:
    return resources.files(_PRESETS).joinpath(f"{name}.toml").read_text(encoding="utf-8")


def schedule_names() -> list[str]:
    """List the names of the schedules of presets, the shortest first."""
    return ["quick", "short", "paper"]


def with_schedule(values: Mapping[str, Any], asked: str | None = None) -> dict[str, Any]:
    """Complete the values of a preset or specification file with those of its schedule.

    Args:
        values: Values of the file. `schedule` may name a schedule, which they override; `schedules` may name a family,
            e.g. "imagenet", whose schedules have values of their own.
        asked: Schedule that overrides the values; the study is then named after it.

    Raises:
        BenchError: There is no such schedule.
    """
    own = with_files({key: value for key, value in values.items() if key not in ("schedule", "schedules")})
    named, family = values.get("schedule"), values.get("schedules")
    if asked is None:
        return own if named is None else merge(_for_methods(_read_schedule(str(named), family), own), own)
    completed = merge(own, _for_methods(_read_schedule(asked, family), own))
    if asked != named:
        completed["name"] = f"{own.get('name', 'study')}-{asked}"
    return completed


def _read_schedule(name: str, family: str | None) -> dict[str, Any]:
    """Read a schedule's values: those of its family if it has a file there, otherwise the common ones."""
    if name not in schedule_names():
        raise unknown_name("schedule", name, schedule_names(), "bench run --help")
    folder = resources.files(f"{_PRESETS}.schedules")
    families = {file.name.rpartition("-")[0] for file in folder.iterdir() if "-" in file.name}
    if family is not None and str(family) not in families:
        raise unknown_name("family of schedules", str(family), families, "docs/paper.md")
    own = folder.joinpath(f"{family}-{name}.toml")
    return tomllib.loads((own if own.is_file() else folder.joinpath(f"{name}.toml")).read_text(encoding="utf-8"))


def _for_methods(schedule: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schedule, which has options for many methods, with those of the methods of a file alone."""
    methods = values.get("methods", StudySpec.model_fields["methods"].default)
    known = methods if isinstance(methods, list | tuple) else ()  # building the specification reports the error
    options = {name: own for name, own in schedule.get("options", {}).items() if name in known}
    return {**schedule, "options": options}


# --- files and the command line ----------------------------------------------------------------------------------


def read_toml(path: Path, what: str = "specification") -> dict[str, Any]:
    """Read the values of a TOML file: UTF-8, or UTF-16 and UTF-32 with a byte-order mark.

    Args:
        path: Path of the file.
        what: Kind of content, for messages.

    Raises:
        BenchError: The file cannot be read or is not valid TOML.
    """
    try:
        values = tomllib.loads(_decoded(read_bytes(path, TEXT_BYTES)))
        if is_deep(values):
            raise RecursionError
    except OSError as error:
        raise BenchError(f"cannot read the {what} '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BenchError(f"the {what} '{path}' is not valid TOML: no UTF-8 text ({error}); save it as UTF-8") from error
    except RecursionError as error:
        raise BenchError(f"the {what} '{path}' is not valid TOML: its values are nested too deeply") from error
    except ValueError as error:  # also a number with too many digits
        raise BenchError(f"the {what} '{path}' is not valid TOML: {error}") from error
    return values


def _decoded(content: bytes) -> str:
    """Decode text in the encoding of its byte-order mark, which editors of some systems write; UTF-8 without one.

    Raises:
        UnicodeDecodeError: The text has another encoding, e.g. UTF-16 without a mark.
    """
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:
        at = content.index(b"\0")
        raise UnicodeDecodeError("utf-8", content, at, at + 1, "zero byte, as in UTF-16 without a byte-order mark")
    return content.decode(encoding)


def parse_setting(text: str) -> dict[str, Any]:
    """Parse one `--set key=value` into a nested dictionary; the value is TOML, a bare word is a text.

    Raises:
        BenchError: There is no "=" or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BenchError(f"--set {text!r} is not of the form key=value, e.g. --set search.epochs=3")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value
    return nested(key.strip(), parsed)


def parse_ablation(text: str) -> tuple[str, list[Any]]:
    """Parse one `--ablate key=a,b` into the key and its values; lists are written in brackets, `[2,4],[3,6]`.

    Raises:
        BenchError: There is no "=", no key or no value, or a value is listed twice.
    """
    key, equals, text_of_values = text.partition("=")
    if not equals or not key.strip() or not text_of_values.strip():
        raise BenchError(f"--ablate {text!r} is not of the form key=a,b, e.g. --ablate group_size=1,2,4")
    try:
        values = tomllib.loads(f"value = [{text_of_values}]")["value"]
    except (ValueError, RecursionError):
        values = [value.strip() for value in text_of_values.split(",")]
    if "" in values or any(values.count(value) > 1 for value in values):
        raise BenchError(f"--ablate {text!r} has an empty value, or one twice; give each once, e.g. group_size=1,2,4")
    return key.strip(), list(values)
