"""What the verbs that measure share: files of figures, numbers to refuse, lines as they come."""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from regkit.benchmarks.harness import write
from regkit.errors import InputError

PICTURES = (".png", ".svg", ".pdf")


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Declare the files that figures are written to and read from."""
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE.json", help="write all figures, and the machine")
    add("--picture", type=Path, metavar="FILE.png", help="draw the ratios")
    add("--read", type=Path, metavar="FILE.json", help="show such a file, and measure nothing")


def check_files(args: argparse.Namespace) -> None:
    """Refuse now what would fail when all is measured.

    Raises: InputError when a file cannot be written there, or is no picture.
    """
    for option, path in (("--out", args.out), ("--picture", args.picture)):
        if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise InputError(f"{option} got {path}; give a file in a folder to write to.")
        if path is not None and path.is_dir():
            raise InputError(f"{option} got {path}, which is a folder; give a file.")
    if args.picture is not None and args.picture.suffix not in PICTURES:
        raise InputError(
            f"--picture got {args.picture}; give a file that ends in {', '.join(PICTURES)}."
        )


def check_least(args: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Raise InputError when a number, by its option, is less than this; None is none given."""
    for option, number in least.items():
        given = getattr(args, option)
        if given is not None and given < number:
            name = option.replace("_", "-")
            raise InputError(f"--{name} got {given}; give {number} or more.")


def keep(report: Any, args: argparse.Namespace, draw: Callable[[Any, Path], None]) -> None:
    """Write and draw a report to the files that were asked for."""
    if args.out is not None:
        write(report, args.out)
    if args.picture is not None:
        draw(report, args.picture)


def show(lines: Iterable[str]) -> None:
    """Print each line as it comes."""
    for line in lines:
        print(line, flush=True)
