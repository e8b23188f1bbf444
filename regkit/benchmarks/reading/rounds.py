"""The contest: rounds in which all take turns, and the figures they leave."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from regkit.benchmarks.reading import candidates as contestants
from regkit.benchmarks.reading.candidates import PYAV, TORCHCODEC, WHOLE, Contestant, Film, Task
from regkit.benchmarks.reading.report import Row
from regkit.benchmarks.rounds import Sample, quartiles, ratios, run_rounds

WARMUP = 1  # rounds that do not count


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
