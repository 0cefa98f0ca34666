"""The reference data that lie beside a development checkout; without them tests skip."""

from collections.abc import Callable
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def shared_file() -> Callable[[str], Path]:
    """Path of a file of the shared reference data."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.is_file():
            pytest.skip(f"reference data {name} not found in {SHARED_DATA}")
        return path

    return find
