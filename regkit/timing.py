"""What benchmarks share: turns, quartiles, the machine's name, and files to write to."""

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from regkit.errors import InputError

PICTURES = (".png", ".svg", ".pdf")


@runtime_checkable
class Named(Protocol):
    """Whoever takes part."""

    @property
    def name(self) -> str:
        """Tell it from the others."""
        ...


Entrant = TypeVar("Entrant", bound=Named)
Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Quartiles:
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """Return the quartiles of two values or more."""
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


def take_turns(
    entrants: Sequence[Entrant], num_rounds: int, clock: Callable[[Entrant, int], Sample]
) -> dict[str, list[Sample]]:
    """Let all act in every round, beginning with another one each time.

    Every second round runs backwards, so that none always follows the same one.
    clock: measures one of them in the round of that number.
    """
    found: dict[str, list[Sample]] = {entrant.name: [] for entrant in entrants}
    for turn in range(num_rounds):
        first = turn % len(entrants)
        order = (*entrants[first:], *entrants[:first])
        for entrant in order if turn % 2 == 0 else reversed(order):
            found[entrant.name].append(clock(entrant, turn))
    return found


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """Name the processor."""
    rows = path.read_text().splitlines() if path.exists() else []
    found = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def package_version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_files(out: Path | None, picture: Path | None) -> None:
    """Refuse now what would fail when all is measured.

    Raises: InputError when a file cannot be written there, or is no picture.
    """
    for option, path in (("--out", out), ("--picture", picture)):
        if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise InputError(f"{option} got {path}; give a file in a folder to write to.")
        if path is not None and path.is_dir():
            raise InputError(f"{option} got {path}, which is a folder; give a file.")
    if picture is not None and picture.suffix not in PICTURES:
        raise InputError(
            f"--picture got {picture}; give a file that ends in {', '.join(PICTURES)}."
        )
