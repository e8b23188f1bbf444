"""What all measurements share: rounds, files of figures, the machine, bars of ratios."""

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from regkit.errors import InputError
from regkit.palette import FAINT, INK
from regkit.timing import Entrant, Quartiles, cpu_name, package_version, take_turns

Sample = dict[str, float]  # ms by clock
Report = TypeVar("Report")


def run_rounds(
    entrants: Sequence[Entrant],
    warmup: int,
    num_rounds: int,
    clock: Callable[[Entrant, int], Sample],
) -> dict[str, list[Sample]]:
    """Let all take turns, and leave out the rounds in which files and libraries come into memory.

    warmup: rounds that do not count, before those that do.
    """
    found = take_turns(entrants, warmup + num_rounds, clock)
    return {name: samples[warmup:] for name, samples in found.items()}


def quartiles(samples: Sequence[Sample]) -> dict[str, Quartiles]:
    """Return by clock the quartiles over all rounds."""
    return {clock: Quartiles.of([sample[clock] for sample in samples]) for clock in samples[0]}


def ratios(own: Sequence[Sample], other: Sequence[Sample]) -> dict[str, Quartiles]:
    """Return by clock the quartiles of own time to the other's, each within its round."""
    rounds = zip(own, other, strict=True)
    return quartiles([{clock: o[clock] / b[clock] for clock in o} for o, b in rounds])


def write(report: Any, path: Path) -> None:
    """Write all figures of a report, a dataclass, as JSON."""
    path.write_text(json.dumps(asdict(report), indent=1) + "\n")


def read(kind: type[Report], path: Path) -> Report:
    """Return the report of this kind that `write` wrote.

    Raises: InputError when the file is none of these.
    """
    try:
        return _made(kind, json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"--read got {path}, which is no file that --out wrote ({type(error).__name__}: "
            f"{error}); give one."
        ) from error


def machine(packages: Iterable[str], **more: Any) -> dict[str, Any]:
    """Describe the machine at hand: its processor, the versions of packages, the date."""
    return {
        "cpu": cpu_name(),
        **more,
        **{name: package_version(name) for name in packages},
        "system": platform.platform(),
        "date": date.today().isoformat(),
    }


def _made(kind: Any, found: Any) -> Any:
    """Make of plain values the dataclasses that a type hint names."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{key: _made(hints[key], value) for key, value in found.items()})
    parts = get_args(kind)
    if get_origin(kind) is list:
        return [_made(parts[0], value) for value in found]
    if get_origin(kind) is dict:
        return {key: _made(parts[1], value) for key, value in found.items()}
    return found


def bar(axes: Any, at: float, ratio: Quartiles, colour: str, text: str, end: float) -> None:
    """Draw a bar with whiskers, and a text behind its end."""
    axes.barh(at, ratio.median, height=0.77, color=colour)
    spread = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
    axes.errorbar(ratio.median, at, xerr=spread, color=INK, elinewidth=1, capsize=2.5)
    axes.annotate(
        text,
        (end, at),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK,
    )


def finish(axes: Any, places: list[float], names: list[str], last: float) -> None:
    """Name the bars, whose last stands at a place, and mark the ratio of one."""
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(places, names)
    axes.set_ylim(last + 0.65, -0.65)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=8.5)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
