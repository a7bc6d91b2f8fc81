"""Specifications as files."""

import json
from collections.abc import Mapping
from typing import Any


def toml(values: Mapping[str, Any]) -> str:
    """A specification as a file; JSON's values are TOML's."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines)
