"""Videos of blobs that travel, and a detector of drawn weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blobs import SIDE, travelling

from regkit.baseline.detector import Detector
from regkit.baseline.features import Features
from regkit.data.made import write_video


@pytest.fixture
def video(tmp_path: Path) -> Callable[..., Path]:
    """Write such clips; 8 frames a second."""

    def write(name: str, *args: float, **options: int) -> Path:
        write_video(tmp_path / name, travelling(*args, **options))
        return tmp_path / name

    return write


@pytest.fixture
def detector() -> Detector:
    """Make one of drawn weights, on clips of 8 frames."""
    features, rng = Features(8, SIDE), np.random.default_rng(0)
    places = np.sort(rng.choice(int(np.prod(features.shape)), 40, replace=False))
    return Detector(
        classes=["a", "b", "c"],
        features=features,
        short_px=SIDE,
        step_s=0.25,
        lam=0.1,
        places=places,
        mean=rng.uniform(0, 0.1, 40),
        scale=rng.uniform(0.5, 1, 40),
        weight=rng.normal(size=(3, 40)),
        bias=rng.normal(size=3),
    )
