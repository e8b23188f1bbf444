"""SIGTERM and SIGUSR1: a run that is told to end keeps what it has, and says so by its exit code.

Schedulers send them before they kill. While training can be cut only between two batches
(`waits`), a signal is noted; anywhere else it ends the run at once, for all that came before lies
in the folder.
"""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if os.name == "posix" else (signal.SIGTERM,)

requested: int | None = None  # the signal that came
waits = False  # whether somebody looks at it soon
_heeded: list[signal.Signals] = []
_own = 0  # the process that heeds them; those forked from it do not


class Stopped(SystemExit):
    """What ends a run that was told to end; the exit code is that of the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)  # what a process that hands this on makes it of again
        self.signum, self.code = signum, 128 + signum


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Heed the signals within, if nobody else does (as submitit, which starts jobs in SLURM)."""
    global requested, waits, _heeded
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _heeded = [number for number, handler in before.items() if handler in (signal.SIG_DFL, _heed)]
    requested, waits = None, False
    _take()
    try:
        yield
    finally:
        requested, waits = None, False
        for number in _heeded:
            signal.signal(number, before[number])


def wait() -> None:
    """Let the signals wait until somebody asks for `requested`; Lightning's own handlers go."""
    global waits
    if _heeded and threading.current_thread() is threading.main_thread():
        waits = True
        _take()


def wait_no_more() -> None:
    """Let the next signal end the run at once; one that came in the meantime does so now."""
    global waits
    waits = False
    if requested is not None:
        raise Stopped(requested)


def requeue() -> bool:
    """Have SLURM start this job again, which SIGUSR1 asks for; say whether it will."""
    job, command = os.environ.get("SLURM_JOB_ID"), shutil.which("scontrol")
    if job is None or command is None:
        return False
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    name = job if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return subprocess.run([command, "requeue", name], check=False).returncode == 0


def _take() -> None:
    global _own
    _own = os.getpid()
    for number in _heeded:
        signal.signal(number, _heed)


def _heed(signum: int, frame: FrameType | None) -> None:
    global requested
    if os.getpid() != _own:  # a worker, which nobody asks
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        return
    again, requested = requested is not None, signum
    if again or not waits:
        raise Stopped(signum)
