"""What all that measures shares: a clock, turns, quartiles, and the machine's name."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch


@runtime_checkable
class Named(Protocol):
    """Whoever takes part."""

    @property
    def name(self) -> str:
        """Tell it from the others."""
        ...


Entrant = TypeVar("Entrant", bound=Named)
Sample = TypeVar("Sample")


def seconds(act: Callable[[], Any], devices: Iterable[torch.device] = ()) -> float:
    """Act, and return how long it took until the devices had done all."""
    synchronize(devices)
    began = time.perf_counter()
    act()
    synchronize(devices)
    return time.perf_counter() - began


def synchronize(devices: Iterable[torch.device]) -> None:
    """Wait until GPUs among the devices have done all."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


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
    return system_field(path, "model name") or platform.processor() or platform.machine()


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def system_field(path: Path, field: str) -> str | None:
    """Return a field of a file in /proc, of rows "field: value"; None where there is none."""
    rows = path.read_text().splitlines() if path.exists() else []
    found = [row.partition(":")[2].strip() for row in rows if row.startswith(field)]
    return found[0] if found else None


def package_version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
