"""The verb `prepare`: a data set in, a report out, and copies for training where asked for."""

import argparse
import sys
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from regkit.data.dataset_files import OfficialSplitData
from regkit.data.prepare import report
from regkit.data.prepare.check import Checker, Facts
from regkit.data.prepare.findings import Places, find, places, rows
from regkit.data.prepare.worker_pool import Lost, spread
from regkit.data.readers import Indexed, Reader
from regkit.data.video import SPLITS, Splits
from regkit.errors import InputError
from regkit.files import make_folder
from regkit.timing import num_cores
from regkit.training.config import make
from regkit.training.overrides import composed


class _Bar(tqdm):
    monitor_interval = 0  # no thread of its own: processes are forked while it lives


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.epilog = (
        "Exit code 0: sound; 1: files that cannot be read or are cut short, parts not within their "
        "files, leaks between splits, contradictory labels or classes without videos; 2: wrong "
        "input. A run that was interrupted starts again from the beginning."
    )
    add = parser.add_argument
    add(
        "overrides",
        nargs="*",
        metavar="data=... data.x=y",
        help="what is to be checked, in the words of regkit train: data=ucf101 data.root=videos",
    )
    add("--out", type=Path, metavar="DIR", help="default: runs/prepare <date_time> <data>")
    add("--workers", type=int, metavar="N", help="processes (default: all cores)")
    add("--quick", action="store_true", help="headers, packets and the first frame of each file")
    add(
        "--timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="give a file up after so many seconds (default: 300)",
    )
    add("--shards", type=Path, metavar="DIR", help="write the readable videos there, to stream")
    add("--chunk-mib", type=float, default=64.0, help="size of a shard (default: 64)")


def run(args: argparse.Namespace) -> int:
    """Check, report, and make the copies; return 1 when the data set is unsound.

    Raises: InputError when an option is out of range, or the data set cannot be found.
    """
    began = time.perf_counter()
    workers = num_cores() if args.workers is None else args.workers
    if workers < 1:
        raise InputError(f"--workers got {workers}; give 1 or more.")
    if not args.timeout > 0:
        raise InputError(f"--timeout got {args.timeout:g}; give more than 0 seconds.")
    config = composed(args.overrides, "prepare", args.config_dir)
    data = make(config.data, num_workers=workers)
    name = str(config.hydra.runtime.choices.data)
    out = args.out or Path("runs", f"prepare {datetime.now():%Y-%m-%d_%H-%M-%S} {name}")
    _refuse_early(args, out)
    uncached = make(config.data, num_workers=workers, cache="none")
    splits, checker, notes = _found(uncached, args.quick)
    known = places(splits)
    facts = _check(checker, known, workers, args.timeout)
    found = find(splits, facts, known, checker.sampling, isinstance(data, OfficialSplitData))
    about = {
        "data": name,
        "overrides": list(args.overrides),
        "date": datetime.now().isoformat(" ", "seconds"),
        "seconds": round(time.perf_counter() - began, 1),
        "quick": args.quick,
        "notes": notes,
    }
    try:
        report.write(out, about, found, rows(splits, facts, known))
    except OSError as error:
        raise InputError(f"--out got {str(out)!r}; no report can be written: {error}.") from error
    print("\n".join([*report.summary(about, found), f"report: {out / 'report.md'}"]), flush=True)
    _copy(data, args, splits, facts, workers)
    return 1 if found.problems else 0


def _found(data: Any, quick: bool) -> tuple[Splits, Checker, list[str]]:
    """Find the videos, and what the data set remarks on them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.ready()
    notes = list(dict.fromkeys(str(one.message) for one in caught))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    reader: Reader = data.file_reader()
    if isinstance(reader, Indexed):
        reader.index.get(__file__)  # where it cannot be used, it says so once, here
    return data.listed, Checker(reader, data.cut().sampling, quick), notes


def _refuse_early(args: argparse.Namespace, out: Path) -> None:
    """Refuse now what would fail when all is checked."""
    make_folder(out, f"--out got {str(out)!r}")
    if args.shards is not None:
        from regkit.data.shards import litdata

        litdata("--shards")
        if not 0 < args.chunk_mib < 4096:
            raise InputError(f"--chunk-mib got {args.chunk_mib:g}; give a size from 1 to 4095.")
        if args.shards.exists() and (not args.shards.is_dir() or any(args.shards.iterdir())):
            raise InputError(f"--shards got {str(args.shards)!r}; give a new folder.")


def _check(checker: Checker, known: Places, workers: int, timeout_s: float) -> dict[str, Facts]:
    tasks = [(path, tuple(parts)) for path, parts in known.items()]
    facts, bad = {}, 0
    with _Bar(total=len(tasks), desc="check", unit="file", file=sys.stderr) as bar:
        for (path, _), result in spread(checker, tasks, min(workers, len(tasks)), timeout_s):
            if isinstance(result, Lost):
                result = Facts(path, result.reason, fatal=True)
            facts[path] = result
            bad += bool(result.reason)
            bar.set_postfix_str(f"{bad} bad" if bad else "", refresh=False)
            bar.update()
    return facts


def _copy(
    data: Any, args: argparse.Namespace, splits: Splits, facts: dict[str, Facts], workers: int
) -> None:
    """Write shards and fill the cache, where asked for."""
    if args.shards is not None:
        from regkit.data.shards import write_shards

        kept = {
            name: [video for video in getattr(splits, name) if not facts[video.path].reason]
            for name in SPLITS
        }
        write_shards(Splits(**kept, classes=splits.classes), args.shards, workers, args.chunk_mib)
        print(f"shards: {args.shards}")
    if data.cache == "none":
        return
    fatal = [path for path, file in facts.items() if file.fatal]
    if fatal:
        print(f"the cache is not filled; it would end as the check of {fatal[0]!r} did")
        return
    data.listed = splits
    data.prepare_data()
