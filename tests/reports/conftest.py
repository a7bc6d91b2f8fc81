"""A store with everything that can go wrong."""

from pathlib import Path
from typing import Any

import pytest

from tests import fake_store


@pytest.fixture
def mixed(tmp_path: Path) -> Any:
    return fake_store.mixed(tmp_path / "store")
