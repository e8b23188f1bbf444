"""The verb `throughput`: options in, table, file and picture out."""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from regkit.benchmarks.harness import machine, read
from regkit.benchmarks.reading import films
from regkit.benchmarks.reading import report as reports
from regkit.benchmarks.reading.candidates import Film, Task, absent
from regkit.benchmarks.reading.report import Report, draw
from regkit.benchmarks.reading.rounds import contest, measure
from regkit.cli.figures import add_file_options, check_files, check_least, keep, show
from regkit.errors import InputError
from regkit.timing import num_cores

PACKAGES = ("av", "torchcodec", "decord", "torch", "torchvision")
# What a file says that it was asked for.
ASKED = ("clip", "stride", "short_px", "rounds", "clips", "sampling", "threads")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="FILE", help="videos (default: four made ones)")
    add("--clip", type=int, default=16, help="frames of a clip (default: %(default)s)")
    add("--stride", type=int, default=2, help="of dense clips (default: %(default)s)")
    add("--short-px", type=int, default=128, help="of the frames (default: %(default)s)")
    add(
        "--rounds",
        type=int,
        default=9,
        help="that count, after one that does not; 0 leaves all out but --memory "
        "(default: %(default)s)",
    )
    add("--clips", type=int, default=4, help="that each reads a round (default: %(default)s)")
    add(
        "--sampling",
        nargs="+",
        choices=("dense", "uniform"),
        default=["dense", "uniform"],
        help="of training clips (default: both)",
    )
    add("--threads", type=int, default=1, help="of every decoder; 0: its choice (default: 1)")
    add("--memory", action="store_true", help="of a process that reads a long film, too")
    add_file_options(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, and print while it goes on.

    Raises: InputError when an option is out of range, or a file no video.
    """
    check_files(args)
    if args.read is not None:
        found = read(Report, args.read)
        show(reports.everything(found))
    else:
        _check_numbers(args)
        with tempfile.TemporaryDirectory() as folder:
            found = _measure(args, Path(folder))
    keep(found, args, draw)


def _measure(args: argparse.Namespace, folder: Path) -> Report:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(args.threads or num_threads)
    try:
        return _report(args, folder)
    finally:
        torch.set_num_threads(num_threads)


def _report(args: argparse.Namespace, folder: Path) -> Report:
    task = Task(args.clip, args.stride, args.short_px, args.threads)
    found = Report(
        machine=machine(PACKAGES, cores=num_cores()),
        options={key: value for key, value in vars(args).items() if key in ASKED},
        left_out=absent(),
        films=[],
        rows=[],
        memory=[],
    )
    show(reports.heading(found))
    for film in _films(args, task, folder) if args.rounds else ():
        facts = films.describe(film, task)
        found = replace(found, films=[*found.films, facts])
        show(reports.film_heading(facts))
        for rows in contest(film, task, args.sampling, args.rounds, args.clips):
            show(reports.table(rows, found.options))
            found = replace(found, rows=[*found.rows, *rows])
    if args.memory:
        found = replace(found, memory=_memory(task, folder))
        show(reports.memory_table(found.memory))
    show(reports.legend(found))
    return found


def _films(args: argparse.Namespace, task: Task, folder: Path) -> Iterator[Film]:
    if args.files:
        paths = [str(path) for path in args.files]
        name = args.files[0].name if len(paths) == 1 else f"{len(paths)} files"
        yield films.film(name, paths, task, folder)
        return
    for kind in films.KINDS:
        path = films.make(kind, folder, films.SECONDS)
        yield films.film(path.stem, [str(path)], task, folder)


def _memory(task: Task, folder: Path) -> list[reports.Memory]:
    piece = films.make(films.LONG, folder, films.SECONDS)
    path = films.repeat(piece, films.PIECES, folder)
    readers = ["pyav"] if "torchcodec" in absent() else ["pyav", "torchcodec"]
    return list(measure(path, task, readers))


def _check_numbers(args: argparse.Namespace) -> None:
    if args.picture is not None and args.rounds == 0:
        raise InputError("--picture draws what --rounds measures; give 2 or more rounds.")
    check_least(args, {"clip": 1, "stride": 1, "short_px": 2, "clips": 1, "threads": 0})
    if args.rounds < 2 and not (args.rounds == 0 and args.memory):
        raise InputError(
            f"--rounds got {args.rounds}; give 2 or more, or 0 together with --memory."
        )
