"""The picture: what each contestant costs, in plain AdamW steps."""

from pathlib import Path
from typing import Any

from regkit.benchmarks.picture import bar, finish
from regkit.benchmarks.step.candidates import FUSED, HOOK, PROX
from regkit.benchmarks.step.report import Report, Row, place
from regkit.palette import BLUE, GREEN, GREY, INK, QUIET, RED
from regkit.timing import Quartiles

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
