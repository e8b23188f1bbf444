"""The verb `gpu-check`: what a GPU does with this package, found out in one run of minutes."""

import argparse
import sys
from pathlib import Path
from typing import Any

from regkit.benchmarks.gpu.check import PartReport, Report, check
from regkit.benchmarks.gpu.parts import PARTS
from regkit.benchmarks.harness import write
from regkit.cli.bench import find_device
from regkit.errors import InputError

WIDTH = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    add = parser.add_argument
    add(
        "--device",
        default="cuda",
        help="cuda, cuda:1, ...; cpu rehearses what needs no GPU (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="write all rows, after each part (default: gpu_check.json)",
        default=Path("gpu_check.json"),
    )
    add("--parts", nargs="+", metavar="PART", default=[], help=f"of {', '.join(PARTS)}")
    add("--seconds", type=float, default=460.0, help="for all of it (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Check, and print while it goes on; return 1 where something is wrong.

    Raises: InputError when an option is out of range.
    """
    for name in args.parts:
        if name not in PARTS:
            raise InputError(f"--parts got {name!r}; give any of {', '.join(PARTS)}.")
    if not args.out.parent.is_dir():
        raise InputError(f"--out got {args.out}; give a file in a folder to write to.")
    device = str(find_device(args.device))
    if device == "cpu":
        print("A rehearsal on a CPU: its times say nothing of a GPU.", flush=True)

    def keep(report: Report) -> None:
        write(report, args.out)
        print(_ending(report.parts[-1]), flush=True)

    wanted = {name: PARTS[name] for name in args.parts or PARTS}
    report = check(device, wanted, args.seconds, _tell, keep)
    wrong = [part.name for part in report.parts if not part.is_ok]
    print(f"Written to {args.out}.")
    print(f"Wrong or not finished: {', '.join(wrong)}." if wrong else "All parts are right.")
    return int(bool(wrong))


def _tell(name: str, row: dict[str, Any]) -> None:
    sign = {True: "right", False: "WRONG", None: "-"}[row["ok"]]
    rest = ", ".join(f"{key} {_short(value)}" for key, value in row.items() if _is_told(key, value))
    line = f"{name:<12}{sign:<6}{row['case']}: {rest}"
    width = WIDTH if sys.stdout.isatty() and row["ok"] is not False else None
    print(line[:width], flush=True)


def _is_told(key: str, value: Any) -> bool:
    return key not in ("case", "ok") and value not in ({}, [], None)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_short(one)}" for key, one in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _ending(part: PartReport) -> str:
    return f"-- {part.name}: {part.ended}, {len(part.rows)} rows in {part.seconds} s"
