"""The picture: how often faster than reading whole files, film by film."""

from pathlib import Path
from typing import Any

from regkit.benchmarks.picture import bar, finish
from regkit.benchmarks.reading.candidates import MEMMAP, PYAV, REENCODE, WHOLE
from regkit.benchmarks.reading.report import Report, Row, clock, place
from regkit.palette import BLUE, GREY, INK


def draw(report: Report, path: Path) -> None:
    """Draw bars on a scale of powers of ten, with quartiles: a column a film, a row a sampling."""
    from matplotlib.figure import Figure

    heats = [heat for heat in ("dense", "uniform") if any(r.heat == heat for r in report.rows)]
    films = [film.name for film in report.films]
    figure = Figure(figsize=(2.2 + 3.4 * len(films), 1 + 2.6 * len(heats)), layout="constrained")
    grid = figure.subplots(len(heats), len(films), sharex=True, sharey="row", squeeze=False)
    for heat, line in zip(heats, grid, strict=True):
        for film, axes in zip(films, line, strict=True):
            rows = [row for row in report.rows if (row.film, row.heat) == (film, heat)]
            _bars(axes, rows, clock(rows[0], report.options))
            axes.set_title(f"{film}\n{heat}", loc="left", fontsize=9, color=INK)
    options = report.options
    figure.suptitle(
        f"Clips a second of one process, in those of reading whole files\n{place(report.machine)}; "
        f"{options['clip']} frames, short side {options['short_px']} px, "
        f"{options['threads']} thread(s); medians of {options['rounds']} rounds, "
        "whiskers: quartiles",
        fontsize=9,
        color=INK,
    )
    figure.savefig(path, dpi=160)


def _bars(axes: Any, rows: list[Row], which: str) -> None:
    places = [float(place) for place in range(len(rows))]
    for at, row in zip(places, rows, strict=True):
        ratio = row.faster[WHOLE][which]
        ours = row.contestant in (PYAV, REENCODE, MEMMAP)
        text = f"{ratio.median:,.0f}" if ratio.median >= 100 else f"{ratio.median:.3g}"
        bar(axes, at, ratio, BLUE if ours else GREY, text, ratio.high)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    names = [row.contestant for row in rows]
    finish(axes, places, names, places[-1])
