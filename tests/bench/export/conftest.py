"""A finished study of digits with the smallest network: common and own quantizers, with and without pruning."""

from types import SimpleNamespace
from typing import Any

import pytest

_SCHEDULE = {"epochs": 3, "batch_size": 64, "lr": 0.05}


@pytest.fixture(scope="session")
def digits_study(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The finished study. Do not write to it."""
    spec = tiny.spec(
        {
            "name": "digits",
            "methods": ["fixed", "width", "full_precision"],
            "seeds": [0],
            "task": {"dataset": "digits", "train_images": 500},
            "pretrain": _SCHEDULE,
            "finetune": _SCHEDULE | {"epochs": 2},
        }
    )
    return tiny.work(spec, tmp_path_factory.mktemp("digits") / "store")


@pytest.fixture(scope="session")
def own_study(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished study of a method with its own quantizers. Do not write to it."""
    spec = tiny.spec({"methods": ["dnas"], "seeds": [0], "recipe": "own", "tuning": {"match": "hinge", "trials": 1}})
    return tiny.work(spec, tmp_path_factory.mktemp("own") / "store")
