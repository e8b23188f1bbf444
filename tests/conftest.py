"""Shapes in signatures are checked while testing; randomness is fixed; no progress bars."""

import importlib.util
import os
import sys

# Tests run side by side, one on each core: more threads would only get in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# Processes share what Python compiles: else each would compile regkit anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if importlib.util.find_spec("beartype") is not None:  # a machine with a GPU may have torch alone
    import checked  # noqa: F401  hooks into imports of regkit

settings.register_profile("regkit", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("regkit")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Fix the seed of every test."""
    torch.manual_seed(0)


def pytest_xdist_auto_num_workers() -> int | None:
    """Let few processes share a GPU: each takes memory of it, and they wait for each other."""
    return 2 if torch.cuda.is_available() else None
