"""The contest: rounds in which all contestants take turns, and the figures they leave."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from regkit.benchmarks.rounds import Sample, quartiles, ratios, run_rounds
from regkit.benchmarks.step.candidates import (
    FOREACH,
    FUSED,
    Contestant,
    baselines,
    draw_gradients,
    naive,
    penalised,
)
from regkit.benchmarks.step.clocks import (
    Rate,
    Training,
    count_launches,
    count_syncs,
    time_step,
    time_training,
)
from regkit.benchmarks.step.report import Row
from regkit.penalties import WeightPenalty
from regkit.timing import take_turns


@dataclass(frozen=True)
class Rounds:
    """How often: steps that count, steps before them, and whole training steps."""

    steps: int
    warmup: int
    training: int


def contest(
    net: nn.Module,
    clip: Tensor,
    penalties: Mapping[str, WeightPenalty],
    rounds: Rounds,
    rate: Rate,
    lam: float,
) -> Iterator[list[Row]]:
    """Time the baselines, then the penalties one after the other against them.

    Only four copies of the weights and their states are alive at a time.
    """
    training = Training(net, clip)
    gradients = draw_gradients(net)
    plain = baselines(net, gradients)
    yield _heat(None, plain, naive(net, gradients, lam), training, rounds, rate)
    for name, penalty in penalties.items():
        entrants = penalised(net, gradients, penalty, clip[:1])
        yield _heat(name, plain, entrants, training, rounds, rate)


def _heat(
    penalty: str | None,
    plain: Sequence[Contestant],
    entrants: Sequence[Contestant],
    training: Training,
    rounds: Rounds,
    rate: Rate,
) -> list[Row]:
    """Time some against the baselines, and return their rows."""
    device = training.clip.device
    everyone = [*plain, *entrants]
    samples = run_rounds(
        everyone, rounds.warmup, rounds.steps, lambda c, _: time_step(c.step, device)
    )
    shown = everyone if penalty is None else entrants
    whole = take_turns(shown, rounds.training, lambda c, _: time_training(training, c.step, device))
    training.net.zero_grad(set_to_none=True)
    return [row_of(penalty, c, samples, whole[c.name], rate, device) for c in shown]


def row_of(
    penalty: str | None,
    contestant: Contestant,
    samples: Mapping[str, Sequence[Sample]],
    whole: Sequence[float],
    rate: Rate,
    device: torch.device,
) -> Row:
    """Sum up what one contestant's clocks have shown, against the baselines of its rounds."""
    own, fused, foreach = (samples[name] for name in (contestant.name, FUSED, FOREACH))
    clock = next(iter(own[0]))
    ms = quartiles(own)
    gb_s = contestant.num_bytes / ms[clock].median / 1e6
    training_ms = median(whole) if whole else None
    on_gpu = device.type == "cuda"
    return Row(
        penalty=penalty,
        contestant=contestant.name,
        ms=ms,
        to_fused=ratios(own, fused),
        to_foreach=ratios(own, foreach),
        fused_ms=median(sample[clock] for sample in fused),
        foreach_ms=median(sample[clock] for sample in foreach),
        num_bytes=contestant.num_bytes,
        gb_s=gb_s,
        of_rate=gb_s / rate.gb_s,
        training_ms=training_ms,
        share=None if training_ms is None else ms[clock].median / training_ms,
        launches=count_launches(contestant.step) if on_gpu else None,
        syncs=count_syncs(contestant.step) if on_gpu else None,
    )
