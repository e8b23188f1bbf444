"""Shapes in signatures are checked while testing; randomness is fixed; no progress bars."""

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, get_args

# Tests run side by side, one on each core: more threads would only get in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from hypothesis import settings

# Processes share what Python compiles: else each would compile regkit anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

whole = jaxtyping.jaxtyped
once = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def checked(of: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """Check types as `jaxtyping.jaxtyped` does, in a third of its time.

    That checks every argument twice, and compares axes where no annotation has any.
    """
    if of is None:
        return functools.partial(checked, typechecker=typechecker)
    if inspect.isclass(of):
        if dataclasses.is_dataclass(of) and "__init__" in vars(of):
            of.__init__ = checked(of.__init__, typechecker=typechecker)
        return of
    named = any(isinstance(hint, str) for hint in of.__annotations__.values())
    if inspect.isgeneratorfunction(of) or named:
        return whole(of, typechecker=typechecker)
    shaped = any(has_axes(hint) for hint in of.__annotations__.values())
    return whole(once(of), typechecker=None) if shaped else once(of)


def has_axes(hint: Any) -> bool:
    """Say whether an annotation, or a part of it, gives the shape of a tensor."""
    return hasattr(hint, "dim_str") or any(has_axes(part) for part in get_args(hint))


jaxtyping.jaxtyped = checked  # what the hook decorates with
jaxtyping.install_import_hook("regkit", "beartype.beartype").__enter__()

settings.register_profile("regkit", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("regkit")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Fix the seed of every test."""
    torch.manual_seed(0)
