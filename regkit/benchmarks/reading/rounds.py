"""Rounds in which all take turns, and how much memory one reading process takes."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from regkit.benchmarks.harness import Sample, quartiles, ratios, run_rounds
from regkit.benchmarks.reading import candidates as contestants
from regkit.benchmarks.reading.candidates import (
    PYAV,
    TORCHCODEC,
    VIEWS,
    WHOLE,
    Contestant,
    Film,
    Task,
)
from regkit.benchmarks.reading.report import Memory, Row
from regkit.data.clips import read_clips
from regkit.data.readers import READERS
from regkit.data.video import Video
from regkit.errors import InputError
from regkit.timing import system_field

WARMUP = 1  # rounds that do not count
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# What that file takes as the order to forget the peak (proc(5)).
FORGET_PEAK = "5"
CHILD = "from regkit.benchmarks.reading.rounds import child; child()"
KINDS = {"dense": "one clip", "uniform": "one clip over the whole", "views": f"{VIEWS} test views"}


def contest(
    film: Film, task: Task, samplings: Sequence[str], rounds: int, clips: int
) -> Iterator[list[Row]]:
    """Time all contestants on a film, heat by heat.

    clips: that each reads in its turn, at different places.
    """
    for sampling in samplings:
        entrants = contestants.training(film, replace(task, sampling=sampling))
        yield _heat(film, sampling, entrants, rounds, clips, (WHOLE, TORCHCODEC, PYAV))
    dense = replace(task, sampling="dense")
    for heat, entrants in (
        ("views", contestants.views(film, dense)),
        ("threads", contestants.threads(film, dense)),
    ):
        yield _heat(film, heat, entrants, rounds, clips, (entrants[0].name,))


def time_clips(film: Film, entrant: Contestant, draws: Sequence[int]) -> Sample:
    """Return the time a clip in ms, on the wall and of all threads of this process.

    Every clip is of another file, as in training: what is kept of the last one is of no use.
    """
    taken = draws[:1] if film.alike and entrant.steady else draws
    wall, cpu = time.perf_counter(), time.process_time()
    for draw in taken:
        entrant.read(draw % len(film.paths), draw)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    per_clip = 1e3 / (len(taken) * entrant.num_clips)
    return {"cpu": cpu * per_clip, "wall": wall * per_clip}


def _heat(
    film: Film,
    heat: str,
    entrants: Sequence[Contestant],
    rounds: int,
    clips: int,
    references: Sequence[str],
) -> list[Row]:
    def clock(entrant: Contestant, turn: int) -> Sample:
        return time_clips(film, entrant, range(turn * clips, (turn + 1) * clips))

    samples = run_rounds(entrants, WARMUP, rounds, clock)
    return [row_of(film.name, heat, entrant.name, samples, references) for entrant in entrants]


def row_of(
    film: str,
    heat: str,
    name: str,
    samples: Mapping[str, Sequence[Sample]],
    references: Sequence[str],
) -> Row:
    """Sum up what one contestant's clocks have shown, against others in the same rounds."""
    own = samples[name]
    return Row(
        film=film,
        heat=heat,
        contestant=name,
        ms=quartiles(own),
        faster={other: ratios(samples[other], own) for other in references if other in samples},
    )


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
    read_clips(Video(path, 0, path), cut, reader, rng)
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
