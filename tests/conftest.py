"""Shapes in signatures are checked while testing; randomness is fixed; no progress bars."""

import os

# Tests run side by side, one on each core: more threads would only get in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("regkit", "beartype.beartype").__enter__()

settings.register_profile("regkit", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("regkit")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Fix the seed of every test."""
    torch.manual_seed(0)
