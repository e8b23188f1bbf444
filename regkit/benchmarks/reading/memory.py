"""How much memory one reading process takes, measured in a fresh one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from regkit.benchmarks.reading.candidates import VIEWS, Task
from regkit.benchmarks.reading.report import Memory
from regkit.data.readers import READERS
from regkit.data.video import Video
from regkit.errors import InputError
from regkit.timing import system_field

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# What that file takes as the order to forget the peak (proc(5)).
FORGET_PEAK = "5"
CHILD = "from regkit.benchmarks.reading.memory import child; child()"
KINDS = {"dense": "one clip", "uniform": "one clip over the whole", "views": f"{VIEWS} test views"}


def measure(path: Path, task: Task, readers: list[str]) -> Iterator[Memory]:
    """Let a fresh process read the file, once for each reader and each kind of clip.

    Raises: InputError where the system does not tell the memory of a process.
    """
    if not STATUS.exists():
        raise InputError("--memory got a system without /proc; it is measured on Linux only.")
    for reader in readers:
        for kind, name in KINDS.items():
            order = {"path": str(path), "reader": reader, "kind": kind, "task": asdict(task)}
            done = subprocess.run(
                [sys.executable, "-c", CHILD],
                input=json.dumps(order),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                last = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
                raise InputError(f"--memory: the process that read {path} failed: {last}")
            yield Memory(f"{reader}, {name}", **json.loads(done.stdout))


def child() -> None:
    """Read what stdin asks for, and print the memory that it took."""
    order = json.load(sys.stdin)
    path, task, kind = order["path"], Task(**order["task"]), order["kind"]
    reader = READERS[order["reader"]](task.threads)
    before = resident("VmRSS")
    forget_peak()
    sampling = "uniform" if kind == "uniform" else "dense"
    cut = Task(**{**order["task"], "sampling": sampling}).cut(VIEWS if kind == "views" else 1)
    rng = None if kind == "views" else np.random.default_rng(0)
    timeline = reader.timeline(path)
    indices = cut.indices(Video(path, 0, path), timeline, rng)
    cut.clip(indices, reader.frames(path, np.unique(indices), task.short_px, timeline), rng)
    print(json.dumps({"before_mib": before, "over_mib": resident("VmHWM") - before}))


def forget_peak() -> bool:
    """Let the peak begin anew; where that is forbidden it counts from the start of the process."""
    try:
        RESET.write_text(FORGET_PEAK)
    except OSError:
        return False
    return True


def resident(field: str) -> float:
    """Return VmRSS (now) or VmHWM (the peak) in MiB."""
    found = system_field(STATUS, f"{field}:")
    assert found is not None
    return int(found.split()[0]) / 1024
