"""What a run found: rows of figures, as a table on the screen and as a picture."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regkit.benchmarks.harness import bar, finish
from regkit.benchmarks.step.candidates import FUSED, HOOK, PROX
from regkit.palette import BLUE, GREEN, GREY, INK, QUIET, RED
from regkit.timing import Quartiles

WIDTH = 32
COLOURS = {HOOK: BLUE, PROX: GREEN, None: GREY}
NAMES = {
    HOOK: "AdamW(fused=True), then the penalty",
    PROX: "ProxAdamW, with the penalty",
    None: "without regkit",
}
CLOCKS = {"gpu": "GPU time", "wall": "time"}
WALL: dict[str, Any] = {
    "marker": "D",
    "color": RED,
    "markersize": 5,
    "markeredgecolor": "white",
    "linestyle": "",
}


@dataclass(frozen=True)
class Rate:
    """The best rate that memory gave.

    what: the kernel that reached it.
    """

    gb_s: float
    what: str


@dataclass(frozen=True)
class Row:
    """One contestant.

    penalty: None for those that have none of ours.
    ms: by clock (wall on a CPU; gpu, host and wall on a GPU).
    to_fused, to_foreach: by clock, ratios within a round to plain AdamW.
    fused_ms, foreach_ms: median of those in the same rounds, on the first clock.
    gb_s: bytes that a step has to move, by the time of the first clock; of_rate: share of the
        measured rate.
    training_ms: forward, backward and step; share: what the step is of that.
    launches, syncs: of the host, a step; None without a GPU.
    """

    penalty: str | None
    contestant: str
    ms: dict[str, Quartiles]
    to_fused: dict[str, Quartiles]
    to_foreach: dict[str, Quartiles]
    fused_ms: float
    foreach_ms: float
    num_bytes: int
    gb_s: float
    of_rate: float
    training_ms: float | None
    share: float | None
    launches: int | None
    syncs: int | None

    @property
    def label(self) -> str:
        """Return the name to show."""
        return self.contestant if self.penalty is None else f"{self.penalty}, {self.contestant}"


@dataclass(frozen=True)
class HostRow:
    """What a step costs the host: on so many tensors of a few weights, nothing else is to be done.

    us: microseconds a tensor, of the calling thread. to_fused: ratio within a round to plain AdamW.
    """

    num_tensors: int
    penalty: str | None
    contestant: str
    us: Quartiles
    to_fused: Quartiles


@dataclass(frozen=True)
class Report:
    """A run.

    machine, options: what it ran on, and what it was asked for.
    left_out: penalties that do not fit the model, with the reason.
    host: what the host's part of a step costs.
    """

    machine: dict[str, Any]
    options: dict[str, Any]
    num_parameters: int
    num_tensors: int
    rate: Rate
    left_out: dict[str, str]
    rows: list[Row]
    host: list[HostRow] = field(default_factory=list)


def place(machine: Mapping[str, Any]) -> str:
    """Name the machine in a few words."""
    threads = f"{machine['threads']} thread" + "s" * (machine["threads"] != 1)
    return f"{machine['device']}, {threads}, torch {machine['torch']}"


def heading(report: Report) -> Iterator[str]:
    """Say what is measured, on what, and what the columns are."""
    options, machine = report.options, report.machine
    yield (
        f"{options['model']}: {report.num_parameters:,} parameters in {report.num_tensors} "
        f"tensors. {place(machine)}."
    )
    yield (
        f"Rate: {report.rate.gb_s:.1f} GB/s, the best of this run on arrays as large as the "
        f"model's: {report.rate.what}."
    )
    for name, reason in report.left_out.items():
        yield f"Left out: {name}. {reason}"
    yield ""
    clocks = "gpu ms  host ms  wall ms" if machine["cuda"] else " wall ms"
    ratio = "x fused (gpu)       (wall)" if machine["cuda"] else "x fused           "
    yield (
        f"{'one step':{WIDTH}} {clocks}  {ratio}  x foreach    GB/s  of rate  launches  syncs"
        "  of training"
    )


def line(row: Row) -> str:
    """Return a row of the table."""
    times = "  ".join(f"{of.median:{max(len(clock) + 3, 7)}.2f}" for clock, of in row.ms.items())
    first, *others = row.to_fused.values()
    ratios = f"{first.median:5.2f} [{first.low:.2f}-{first.high:.2f}]"
    if others:
        ratios = f"{ratios:18} {others[-1].median:7.2f}"
    foreach = next(iter(row.to_foreach.values())).median
    return (
        f"{row.label:{WIDTH}} {times:>8}  {ratios:18}  {foreach:9.2f}  {row.gb_s:6.1f}  "
        f"{row.of_rate:7.0%}  {_or_dash(row.launches):>8}  {_or_dash(row.syncs):>5}  "
        f"{'-' if row.share is None else f'{row.share:.1%}':>11}"
    )


def host_heading() -> Iterator[str]:
    """Say what the rows of the host's time are."""
    yield ""
    yield (
        f"{'time of the host, one step':{WIDTH}}  tensors  us a tensor  x fused            "
        "(on tensors of a few weights)"
    )


def host_line(row: HostRow) -> str:
    """Return a row of the host's time."""
    label = row.contestant if row.penalty is None else f"{row.penalty}, {row.contestant}"
    ratio = row.to_fused
    return (
        f"{label:{WIDTH}}  {row.num_tensors:7}  {row.us.median:11.2f}  "
        f"{ratio.median:5.2f} [{ratio.low:.2f}-{ratio.high:.2f}]"
    )


def legend(report: Report) -> Iterator[str]:
    """Say how to read the table."""
    yield ""
    yield (
        f"Times: medians of {report.options['rounds']} rounds; x: median of the ratios within a "
        "round, with quartiles."
    )
    yield (
        "GB/s: counts 28 bytes a weight for AdamW, also with the prox in its pass (ProxAdamW where "
        "kernels know the penalty); 8 more for a prox in a pass of its own, 12 for groups; 4 for a "
        "count."
    )
    if report.options["train_rounds"]:
        yield (
            "of training: the step's share of forward, backward and step on "
            f"{report.options['batch']} clips of {report.options['clip']}."
        )


def everything(report: Report) -> Iterator[str]:
    """Return all lines, as they are printed while it is measured."""
    yield from heading(report)
    yield from map(line, report.rows)
    if report.host:
        yield from host_heading()
        yield from map(host_line, report.host)
    yield from legend(report)


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)


def draw(report: Report, path: Path) -> None:
    """Draw bars of the ratio to AdamW(fused=True), with quartiles; on a GPU also of wall time."""
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if row.contestant != FUSED]
    places = _places(rows)
    figure = Figure(figsize=(9, 2.2 + 0.27 * places[-1]), layout="constrained")
    axes: Any = figure.subplots()
    for at, row in zip(places, rows, strict=True):
        _bar(axes, at, row)
    finish(axes, *_ticks(rows, places), places[-1])
    axes.set_xlim(0, 1.2 * max(of.high for row in rows for of in _shown(row).values()))
    clock = next(iter(rows[0].ms))
    axes.set_xlabel(f"{CLOCKS[clock]} of one optimizer step, in AdamW(fused=True) steps", color=INK)
    _legend(figure, rows)
    _title(axes, report)
    figure.savefig(path, dpi=160)


def _shown(row: Row) -> dict[str, Quartiles]:
    """Return the ratios to show: of the first clock, and of the wall where that is another."""
    first = next(iter(row.to_fused))
    return {clock: row.to_fused[clock] for clock in dict.fromkeys((first, "wall"))}


def _places(rows: list[Row]) -> list[float]:
    """Return where each bar goes: those of one penalty side by side, gaps in between."""
    places, at = [], 0.0
    for before, row in zip([None, *rows[:-1]], rows, strict=True):
        if before is not None:
            own = row.penalty is None or row.penalty != before.penalty
            at += 1.0 if row.penalty is None else 1.35 if own else 0.85
        places.append(at)
    return places


def _bar(axes: Any, at: float, row: Row) -> None:
    shown = list(_shown(row).values())
    colour = COLOURS[row.contestant if row.penalty is not None else None]
    text = "   wall ".join(f"{of.median:.2f}" for of in shown)
    bar(axes, at, shown[0], colour, text, max(of.high for of in shown))
    for wall in shown[1:]:
        axes.plot(wall.median, at, **WALL)


def _ticks(rows: list[Row], places: list[float]) -> tuple[list[float], list[str]]:
    """Name a penalty once, in the middle of its bars."""
    names: dict[str, list[float]] = {}
    for at, row in zip(places, rows, strict=True):
        names.setdefault(row.penalty or row.contestant, []).append(at)
    return [sum(at) / len(at) for at in names.values()], list(names)


def _legend(figure: Any, rows: list[Row]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    present = dict.fromkeys(row.contestant if row.penalty is not None else None for row in rows)
    handles: list[Any] = [Patch(color=COLOURS[kind], label=NAMES[kind]) for kind in present]
    if len(_shown(rows[0])) > 1:
        handles.append(Line2D([], [], label="wall time, host included", **WALL))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8.5, frameon=False
    )


def _title(axes: Any, report: Report) -> None:
    fused = next(row for row in report.rows if row.contestant == FUSED)
    ms = next(iter(fused.ms.values())).median
    axes.set_title(
        f"What a penalty costs: {report.options['model']}, "
        f"{report.num_parameters:,} parameters\n\n",
        loc="left",
        fontsize=13,
        color=INK,
    )
    axes.text(
        0,
        1.005,
        f"{place(report.machine)}\nAdamW(fused=True): {ms:.3g} ms; "
        f"medians of {report.options['rounds']} rounds, whiskers: quartiles",
        transform=axes.transAxes,
        fontsize=8.5,
        color=QUIET,
        va="bottom",
    )
