"""What a run found: rows of figures, as a table on the screen and as a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regkit.benchmarks.harness import bar, finish
from regkit.benchmarks.reading.candidates import MEMMAP, PYAV, REENCODE, WHOLE
from regkit.palette import BLUE, GREY, INK
from regkit.timing import Quartiles

WIDTH = 25
HEATS = {
    "dense": "training clips, every {stride}th frame from a random start",
    "uniform": "training clips, one random frame of each of equal segments",
    "views": "the views of a test video",
    "threads": "threads of the decoder, one process alone",
}


@dataclass(frozen=True)
class Row:
    """One contestant in one heat.

    ms: a clip, by clock: cpu (all threads of the process) and wall.
    faster: by another contestant and by clock, how often its time in the same round is this one's.
    """

    film: str
    heat: str
    contestant: str
    ms: dict[str, Quartiles]
    faster: dict[str, dict[str, Quartiles]]


@dataclass(frozen=True)
class Facts:
    """What is read: counts of all its files, of which one is described.

    keyframes: the largest number of frames from one to the next, of all files.
    copies_mib: by kind of copy.
    left_out: contestants that cannot read it, with the reason.
    """

    name: str
    num_files: int
    codec: str
    width_px: int
    height_px: int
    frames: int
    seconds: float
    keyframes: int
    mib: float
    copies_mib: dict[str, float]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Memory:
    """What a fresh process took to read: above what it held before, at most."""

    what: str
    before_mib: float
    over_mib: float


@dataclass(frozen=True)
class Report:
    """A run.

    machine, options: what it ran on, and what it was asked for.
    left_out: libraries that are not there, with the reason.
    """

    machine: dict[str, Any]
    options: dict[str, Any]
    left_out: dict[str, str]
    films: list[Facts]
    rows: list[Row]
    memory: list[Memory]


def clock(row: Row, options: dict[str, Any]) -> str:
    """Say by which time to compare: of the processor, where one thread works."""
    return "cpu" if options["threads"] == 1 and row.heat != "threads" else "wall"


def place(machine: dict[str, Any]) -> str:
    """Name the machine in a few words."""
    versions = ", ".join(
        f"{name} {machine[name]}"
        for name in ("av", "torchcodec", "decord", "torch")
        if machine[name] is not None
    )
    return f"{machine['cpu']}, {machine['cores']} cores, {versions}"


def heading(report: Report) -> Iterator[str]:
    """Say on what machine, what is left out and why."""
    yield f"{place(report.machine)}."
    for name, reason in report.left_out.items():
        yield f"Left out: {name}. {reason}."


def film_heading(facts: Facts) -> Iterator[str]:
    """Describe a film."""
    files = f"{facts.num_files} files, " if facts.num_files > 1 else ""
    copies = ", ".join(f"{kind} {mib:.1f}" for kind, mib in facts.copies_mib.items())
    yield ""
    yield (
        f"{facts.name}: {files}{facts.codec} {facts.width_px}x{facts.height_px}, {facts.frames} "
        f"frames in {facts.seconds:.1f} s, a keyframe each {facts.keyframes} or closer; "
        f"{facts.mib:.1f} MiB, copies {copies} MiB"
    )
    for name, reason in facts.left_out.items():
        yield f"  Left out: {name}. {reason}."


def table(rows: Sequence[Row], options: dict[str, Any]) -> Iterator[str]:
    """Return the lines of one heat."""
    which = clock(rows[0], options)
    title = HEATS[rows[0].heat].format(stride=options["stride"])
    names = "".join(f"  {'x ' + other:>24}" for other in rows[0].faster)
    yield f"  {title}"
    yield f"  {'':{WIDTH}} {'clips/s':>9} {'wall ms':>9} {'cpu ms':>9}{names}  ({which})"
    for row in rows:
        cpu, wall = row.ms["cpu"].median, row.ms["wall"].median
        ratios = "".join(f"  {_ratio(times[which]):>24}" for times in row.faster.values())
        yield f"  {row.contestant:{WIDTH}} {1e3 / wall:9.1f} {wall:9.2f} {cpu:9.2f}{ratios}"


def memory_table(rows: Sequence[Memory]) -> Iterator[str]:
    """Return the lines on memory."""
    if rows:
        yield ""
        yield f"{'memory of one process, MiB':{2 * WIDTH}} {'before':>8} {'more':>8}"
    for row in rows:
        yield f"{row.what:{2 * WIDTH}} {row.before_mib:8.0f} {row.over_mib:8.0f}"


def legend(report: Report) -> Iterator[str]:
    """Say how to read the table."""
    options = report.options
    yield ""
    if report.rows:
        yield (
            f"Clips of {options['clip']} frames, short side {options['short_px']} px, "
            f"{options['threads']} thread(s) a decoder. Medians of {options['rounds']} rounds of "
            f"{options['clips']} clips; x: how often faster, within a round, with quartiles."
        )


def everything(report: Report) -> Iterator[str]:
    """Return all lines, as they are printed while it is measured."""
    yield from heading(report)
    for facts in report.films:
        yield from film_heading(facts)
        own = [row for row in report.rows if row.film == facts.name]
        for heat in dict.fromkeys(row.heat for row in own):
            yield from table([row for row in own if row.heat == heat], report.options)
    yield from memory_table(report.memory)
    yield from legend(report)


def _ratio(of: Quartiles) -> str:
    return f"{of.median:.2f} [{of.low:.2f}-{of.high:.2f}]"


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
