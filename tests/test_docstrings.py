"""What users call says of each argument what it is, and which errors it raises."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from lightning.pytorch import Callback

import regkit
from regkit import penalties


def offered() -> Iterator[tuple[str, Any, str]]:
    """Yield names, things, and what their docstrings and those they inherit from say."""
    for room in (regkit, penalties):
        for name in room.__all__:
            of = getattr(room, name)
            if inspect.isclass(of) and not issubclass(of, Exception):
                yield name, of, told(of)
                for key, method in inspect.getmembers(of, inspect.isfunction):
                    hook = hasattr(Callback, key)  # whose arguments are Lightning's
                    if (
                        not key.startswith("_")
                        and method.__module__.startswith("regkit.")
                        and not hook
                    ):
                        yield f"{name}.{key}", method, told(of, key)
            elif inspect.isfunction(of):
                yield name, of, of.__doc__ or ""


def told(of: type, key: str = "") -> str:
    """Return the docstrings of a class, or of one of its methods, and of its ancestors."""
    owners = [base for base in of.__mro__ if base is not object]
    return "\n".join((vars(base).get(key) if key else base).__doc__ or "" for base in owners)


OFFERED = {name: (of, doc) for name, of, doc in offered()}


@pytest.mark.parametrize("name", OFFERED)
def test_arguments_and_errors_are_told(name: str) -> None:
    of, doc = OFFERED[name]
    arguments = [word for word in inspect.signature(of).parameters if word != "self"]
    assert [word for word in arguments if not re.search(rf"\b{word}\b", doc)] == []
    if not inspect.isclass(of) and "raise InputError" in inspect.getsource(of):
        assert "Raises" in doc
