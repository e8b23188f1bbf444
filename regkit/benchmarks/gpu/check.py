"""The check: its parts, one after the other, each in a process and within a time of its own."""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from regkit.benchmarks.gpu.parts import Part, Row, Where

# Processes are forked from one that has imported all and has not touched the GPU.
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["regkit.benchmarks.gpu.parts", "regkit.regularizer.regularizer"])
PATIENCE_S = 5.0  # with a process that has said all
DONE, FAILED, LATE, DIED = "done", "failed", "out of time", "died"


@dataclass(frozen=True)
class PartReport:
    """What one part found.

    ended: "done", or "out of time", "died" (with its exit code), "failed" (with the error).
    seconds: that it took. rows: all that came before it ended.
    """

    name: str
    ended: str
    seconds: float
    rows: list[Row]

    @property
    def is_ok(self) -> bool:
        """Say whether it came to its end, and no row is wrong."""
        return self.ended == DONE and all(row["ok"] is not False for row in self.rows)


@dataclass(frozen=True)
class Report:
    """What the whole check found: device "cpu" is a rehearsal, which says nothing of a GPU."""

    device: str
    parts: list[PartReport]

    @property
    def is_ok(self) -> bool:
        """Say whether every part is."""
        return all(part.is_ok for part in self.parts)


def check(
    device: str,
    parts: Mapping[str, tuple[Part, float]],
    seconds: float,
    tell: Callable[[str, Row], None],
    keep: Callable[[Report], None],
) -> Report:
    """Run parts, each with the seconds that it may take, and return what they found.

    seconds: for all of them; what is not begun by then is left out, as "out of time".
    tell: is called with each row as it comes. keep: with the report so far, after each part.
    """
    report, ends = Report(device, []), time.monotonic() + seconds
    for name, (part, most) in parts.items():
        found = _run(name, part, device, min(most, ends - time.monotonic()), tell)
        report = replace(report, parts=[*report.parts, found])
        keep(report)
    return report


def _run(
    name: str, part: Part, device: str, seconds: float, tell: Callable[[str, Row], None]
) -> PartReport:
    if seconds <= 0:
        return PartReport(name, LATE, 0.0, [])
    ours, theirs = _FORKED.Pipe(duplex=False)
    process = _FORKED.Process(target=_work, args=(part, device, theirs), daemon=True)
    began = time.monotonic()
    process.start()
    theirs.close()
    rows, ended = [], LATE
    while ours.poll(max(began + seconds - time.monotonic(), 0)):
        try:
            kind, found = ours.recv()
        except EOFError:
            process.join()
            ended = f"{DIED} with exit code {process.exitcode}"
            break
        if kind == "row":
            rows.append(found)
            tell(name, found)
        else:
            ended = found
            process.join(PATIENCE_S)
            break
    process.kill()
    process.join()
    return PartReport(name, ended, round(time.monotonic() - began, 1), rows)


def _work(part: Part, device: str, pipe: Connection) -> None:
    """Be the process of a part: send its rows, and how it ended."""
    try:
        for row in part(Where(torch.device(device))):
            pipe.send(("row", row))
        pipe.send(("ended", DONE))
    except Exception as error:
        pipe.send(("ended", f"{FAILED}: {type(error).__name__}: {_first_line(error)}"))


def _first_line(error: Any) -> str:
    return next(iter(str(error).splitlines()), "")
