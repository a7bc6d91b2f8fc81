"""A store with everything that can go wrong."""

from pathlib import Path
from typing import Any

import pytest

from tests import fake_store


@pytest.fixture
def mixed(tmp_path: Path) -> Any:
    fake = fake_store.mixed(tmp_path / "store")
    fake.seeds("fixed", [61.0, 62.0], budget="3bit")  # a second budget, so that every report applies
    return fake
