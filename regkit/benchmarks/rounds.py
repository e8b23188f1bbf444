"""Rounds in which all take turns, and the figures they leave."""

from collections.abc import Callable, Sequence

from regkit.timing import Entrant, Quartiles, take_turns

Sample = dict[str, float]  # ms by clock


def run_rounds(
    entrants: Sequence[Entrant],
    warmup: int,
    num_rounds: int,
    clock: Callable[[Entrant, int], Sample],
) -> dict[str, list[Sample]]:
    """Let all take turns, and leave out the rounds in which files and libraries come into memory.

    warmup: rounds that do not count, before those that do.
    """
    found = take_turns(entrants, warmup + num_rounds, clock)
    return {name: samples[warmup:] for name, samples in found.items()}


def quartiles(samples: Sequence[Sample]) -> dict[str, Quartiles]:
    """Return by clock the quartiles over all rounds."""
    return {clock: Quartiles.of([sample[clock] for sample in samples]) for clock in samples[0]}


def ratios(own: Sequence[Sample], other: Sequence[Sample]) -> dict[str, Quartiles]:
    """Return by clock the quartiles of own time to the other's, each within its round."""
    rounds = zip(own, other, strict=True)
    return quartiles([{clock: o[clock] / b[clock] for clock in o} for o, b in rounds])
