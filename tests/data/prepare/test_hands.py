"""Processes that die, hang, or lose their caller."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import active_children

import pytest

from regkit.data.prepare.worker_pool import Lost, spread


def square(number: int) -> int:
    return number * number


@pytest.mark.parametrize("num_workers", [1, 2, 5])
@pytest.mark.parametrize("num_items", [0, 1, 3, 40])
def test_every_item_is_done_once(num_workers: int, num_items: int):
    done = list(spread(square, range(num_items), num_workers, 60.0))
    assert sorted(done) == [(n, n * n) for n in range(num_items)]
    assert not active_children()


def crash() -> None:
    faulthandler.disable()  # pytest's would fill the screen
    os.kill(os.getpid(), signal.SIGSEGV)


ENDS: dict[str, tuple[Callable[[], object], str]] = {
    "segfault": (crash, "SIGSEGV"),
    "memory": (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL: the memory was full?"),
    "exit": (lambda: os._exit(3), "exit code 3"),
    "hang": (lambda: time.sleep(60), "given up after 0.5 s"),
    "stop": (lambda: os.kill(os.getpid(), signal.SIGSTOP), "given up after 0.5 s"),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_item_that_ends_its_process_is_named_and_the_others_done(end: str):
    deed, said = ENDS[end]

    def do(number: int) -> int:
        if number in (0, 4):
            deed()
        return number * number

    began = time.monotonic()
    done = dict(spread(do, range(9), 2, 0.5))
    assert time.monotonic() - began < 10
    lost = {n: done.pop(n) for n in (0, 4)}
    assert done == {n: n * n for n in range(9) if n not in (0, 4)}
    assert all(isinstance(one, Lost) and said in one.reason for one in lost.values())
    assert not active_children()


def test_a_process_that_dies_between_two_items_costs_none():
    walk = spread(square, range(3), 1, 5.0)
    assert next(walk) == (0, 0)
    time.sleep(0.3)  # item 1 is done
    for child in active_children():
        child.kill()
        child.join()
    assert list(walk) == [(1, 1), (2, 4)]


def test_slow_items_have_each_their_own_time():
    def slow(number: int) -> int:
        time.sleep(0.2)
        return number

    assert sorted(spread(slow, range(8), 2, 0.7)) == [(n, n) for n in range(8)]


def test_one_who_looks_away_leaves_no_process_behind():
    walk = spread(lambda n: time.sleep(60 * (n > 0)) or n, range(4), 2, 60.0)
    assert next(walk) == (0, 0)
    assert active_children()
    began = time.monotonic()
    walk.close()
    assert time.monotonic() - began < 3
    assert not active_children()


ORPHANS = """
import multiprocessing, os, time
from regkit.data.prepare.worker_pool import spread
walk = spread(lambda n: n or 0, range(1000000), 3, 60.0)
next(walk)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
time.sleep(60)
"""


def test_processes_end_when_their_caller_is_killed():
    caller = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    pids = [int(pid) for pid in caller.stdout.readline().split()]
    assert len(pids) == 3
    caller.kill()
    caller.communicate()
    for _ in range(100):
        if not any(map(running, pids)):
            return
        time.sleep(0.05)
    raise AssertionError("orphans")


def running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
