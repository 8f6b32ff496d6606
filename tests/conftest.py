"""What several test files share: reference data beside the checkout."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


@pytest.fixture(scope="session")
def shared_real() -> Path:
    """Poses of real people signing, messy descriptions, hostile files."""
    return _shared("real")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Vectors recorded from the official Uni-Sign implementation."""
    return _shared("reference")
