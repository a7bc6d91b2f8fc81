"""States of models are loaded in the format that their modules write."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from bench.compression.compress import restore_state


class Versioned(nn.Linear):
    """A layer that refuses a state without the version of its format, as some of torchvision's networks do."""

    _version = 3

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *others: Any
    ) -> None:
        if local_metadata.get("version") != self._version:
            raise ValueError(f"version should be {self._version}, not {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_a_plain_mapping_is_loaded_with_the_versions_of_the_model() -> None:
    model, other = (nn.Sequential(Versioned(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="version should be 3, not None"):
        other.load_state_dict(state)
    restore_state(other, state)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_a_state_of_another_model_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        restore_state(nn.Linear(2, 3), {"weight": torch.zeros(3, 2)})
