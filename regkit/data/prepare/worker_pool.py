"""Processes that each work on one item at a time, so that it is known which item ended one."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_FORK = get_context("fork")
_PATIENCE_S = 1.0  # for a process that was killed; one that waits for a dead disk stays
# A Ctrl-C in the instant before a wait begins does not end it; it is answered when it ends.
_ANSWER_S = 0.5
_FIRST_TO_GO = "1000"  # where memory ends, Linux shall take these processes and not the caller


@dataclass(frozen=True)
class Lost:
    """What became of an item whose process died or was given up."""

    reason: str


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    item: Any = None
    since: float = 0.0

    def take(self, items: Iterator[Any]) -> bool:
        """Begin with the next item; False when there is none left."""
        for item in items:
            self.item, self.since = item, time.monotonic()
            with suppress(BrokenPipeError, ConnectionResetError):  # `result` tells that it died
                self.connection.send(item)
            return True
        return False

    def result(self, timeout_s: float) -> Any:
        """Return what was made of the item, or Lost; None where it is still worked on."""
        try:
            if self.connection.poll():
                return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(_PATIENCE_S)
            return Lost(f"the process that read it died ({_cause(self.process.exitcode)})")
        if time.monotonic() - self.since > timeout_s:
            return Lost(f"given up after {timeout_s:g} s")
        return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join(_PATIENCE_S)
        self.connection.close()


def spread(
    do: Callable[[Any], Any], items: Iterable[Any], num_workers: int, timeout_s: float
) -> Iterator[tuple[Any, Any]]:
    """Yield each item with what `do` makes of it, or with Lost, as they become ready.

    do: must not raise, nor return None.
    """
    waiting, hands = iter(items), []
    try:
        for _ in range(num_workers):
            hand = _hired(do, hands)
            hands.append(hand)
            if not hand.take(waiting):
                hands.pop().stop()
                break
        while hands:
            patience = min(hand.since for hand in hands) + timeout_s - time.monotonic()
            patience = min(max(0.0, patience) + 0.01, _ANSWER_S)
            wait([hand.connection for hand in hands], patience)
            for hand in list(hands):
                result = hand.result(timeout_s)
                if result is None:
                    continue
                item = hand.item
                if isinstance(result, Lost) or not hand.process.is_alive():
                    hands.remove(hand)
                    hand.stop()
                    hand = _hired(do, hands)
                    hands.append(hand)
                if not hand.take(waiting):
                    hands.remove(hand)
                    hand.stop()
                yield item, result
    finally:
        for hand in hands:
            hand.process.kill()
        for hand in hands:
            hand.stop()


def _hired(do: Callable[[Any], Any], others: Iterable[_Worker]) -> _Worker:
    ours, theirs = _FORK.Pipe()
    inherited = [ours, *(hand.connection for hand in others)]
    process = _FORK.Process(target=_serve, args=(do, theirs, inherited), daemon=True)
    # Ctrl-C reaches all processes of a terminal; it is the caller's to answer.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, ours)


def _serve(
    do: Callable[[Any], Any], connection: Connection, inherited: Iterable[Connection]
) -> None:
    for end in inherited:  # else none of us would learn that the caller is gone
        end.close()
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text(_FIRST_TO_GO)
    try:
        while True:
            connection.send(do(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _cause(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    return f"{name}: the memory was full?" if name == "SIGKILL" else name
