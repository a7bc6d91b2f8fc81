"""The keys of a specification with what they mean, what is allowed and their defaults, read from the schema itself."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from bench.spec.options import Options, table_class
from bench.spec.schema import Schedule, StudySpec

_ATTRIBUTE = re.compile(r"    (\w+): (.*)")
_LIMITS = {
    "minimum": "at least {:g}",
    "exclusiveMinimum": "above {:g}",
    "maximum": "at most {:g}",
    "exclusiveMaximum": "below {:g}",
}
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "table",
    "null": "unset",
}
_UNSET = "unset"


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key of a specification.

    Attributes:
        name: Path of the key, as `--set` reads it, e.g. "search.epochs".
        allowed: Values that are allowed, in words.
        default: Default as TOML writes it; "unset" for none.
        meaning: Meaning, in sentences.
    """

    name: str
    allowed: str
    default: str
    meaning: str

    @property
    def table(self) -> str:
        """Table that the key is in; empty for keys of the study itself."""
        return self.name.rpartition(".")[0]

    @property
    def summary(self) -> str:
        """First sentence of the meaning."""
        return re.split(r"(?<=\.) (?=[A-Z\"])", self.meaning, maxsplit=1)[0].rstrip(".")


def keys() -> list[Key]:
    """List all keys, those of the study itself first and then table by table."""
    found = list(_keys(StudySpec, "", StudySpec.model_json_schema()["$defs"], StudySpec.model_json_schema()))
    return sorted(found, key=lambda key: key.table != "")


def _keys(
    model: type[BaseModel], prefix: str, definitions: Mapping[str, Any], schema: Mapping[str, Any]
) -> Iterator[Key]:
    meanings = attribute_texts(Schedule) | attribute_texts(model)  # `SearchSchedule` refers to `Schedule`
    for name, field in model.model_fields.items():
        own = schema["properties"][name]
        kind = table_class(field.annotation)
        if kind is not None:
            yield from _keys(kind, f"{prefix}{name}.", definitions, definitions[kind.__name__])
        else:
            default = field.get_default(call_default_factory=True, validated_data={})
            yield Key(
                name=f"{prefix}{name}",
                allowed=_in_words(own),
                default=_UNSET if default is None else json.dumps(default, ensure_ascii=False, default=str),
                meaning=meanings[name],
            )


def attribute_texts(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and of its bases say about each attribute, on one line."""
    texts: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if base not in Options.__mro__]):
        _, _, section = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        name = ""
        for line in section.splitlines():
            if match := _ATTRIBUTE.fullmatch(line):
                name, texts[match[1]] = match[1], match[2]
            elif name and line.strip():
                texts[name] += f" {line.strip()}"
    return texts


def _in_words(schema: Mapping[str, Any]) -> str:
    """Describe the values that a JSON schema allows."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_in_words, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return ", ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = _in_words(schema.get("items") or {}) if schema.get("items") else "values"
        return f"list: {items}"
    limits = [form.format(schema[key]) for key, form in _LIMITS.items() if key in schema]
    return " ".join(filter(None, (_TYPES.get(str(schema.get("type")), "value"), " and ".join(limits))))
