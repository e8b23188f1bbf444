"""The slow average of the gradients of each parameter, and how much of it may be noise.

What an optimizer averages by itself (a momentum buffer, a first moment) goes back some ten steps.
Samples of that, or of the gradients themselves, are averaged here over a thousand.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regkit.optim.batching import Batch, Slice, most_entries, packed
from regkit.optim.sharding import fill
from regkit.optim.step_size import AverageOf, GradientAverage, Move, Moves, Number
from regkit.structure.distributed import all_reduce_counts, full_tensor, local

# torch has no public names for operations on lists.
# pyright: reportPrivateImportUsage=false

# Steps that the average goes back.
HORIZON = 1000
# Shorter trainings are forgotten as they go on: sample k weighs as k^(FADING - 1) (Shamir and
# Zhang, ICML 2013, "polynomial-decay averaging").
FADING = 2
# Noise is that of late: while training falls towards a minimum, gradients differ by more than it.
NOISE_FADING = 8
# Steps between two samples, at most: what the optimizer itself averages lies between.
SAMPLE_INTERVAL = 10
# Samples of which each tells of the noise; then one in as many does.
NOISE_INTERVAL = 10
# Samples before which there is no evidence: one says nothing about its noise.
LEAST_SAMPLES = 2
# Standard deviations of noise that an average has to be clear of.
CONFIDENCE = 2.0


@dataclass
class Average:
    """The mean of the gradients of one parameter.

    values: float32 at least, placed as the parameter.
    variance: of a sample, the mean over entries, 0-d.
    count: number of samples. concentration: sum of their squared weights, 1 / count of equal ones.
    """

    values: Tensor
    variance: Tensor
    count: int = 0
    concentration: float = 0.0

    def advance(self, weight: float) -> None:
        """Note that a sample has been taken in."""
        self.count += 1
        self.concentration = (1 - weight) ** 2 * self.concentration + weight**2

    @property
    def noise(self) -> Tensor:
        """The variance of an entry of the mean, 0-d."""
        return self.variance * self.concentration


class GradientAverages:
    """The averages of one optimizer's parameters: four bytes for each weight.

    average_of: what the optimizer keeps that is an average itself; None: nothing is averaged here.
    """

    def __init__(self, average_of: AverageOf | None) -> None:
        self.average_of = average_of
        self.by_parameter: dict[nn.Parameter, Average] = {}

    def sample(
        self, step: int, moves: Moves, unscale: Tensor | None = None, skip: Tensor | None = None
    ) -> None:
        """Take in the gradients of a step where a sample is due (a collective for shards).

        moves: of the parameters to be averaged.
        unscale: what raw gradients are to be divided by. skip: where it is not 0 they are left out.
        """
        if self.average_of is None:
            return
        is_due: dict[int, bool] = {}
        alike: dict[Any, list[Move]] = defaultdict(list)
        for p, move in moves.items():
            group = id(move.group)
            if group not in is_due:
                is_due[group] = self.is_due(step, [move])
            if is_due[group]:
                if p not in self.by_parameter:
                    self.by_parameter[p] = _empty(p)
                values = local(self.by_parameter[p].values)
                alike[group, self.by_parameter[p].count, values.dtype, values.device].append(move)
        for some in alike.values():
            source = self.average_of(some[0])
            raw, scale = source.key is None, source.full_scale()
            if raw and unscale is not None:
                scale = scale / unscale
            source = replace(source, scale=scale, decay=0.0)
            self._take_in(some, source, skip if raw else None)

    def is_due(self, step: int, leads: Iterable[Move]) -> bool:
        """Say whether a sample of any of these groups is due at a step.

        leads: a move of each group.
        """
        of = self.average_of
        return of is not None and any(step % _interval(of(lead)) == 0 for lead in leads)

    def _take_in(self, moves: Sequence[Move], source: GradientAverage, skip: Tensor | None) -> None:
        """Add a sample to averages that have as many."""
        averages = [self.by_parameter[move.parameter] for move in moves]
        count = averages[0].count + 1
        weight = max(FADING / (count + FADING - 1), _interval(source) / HORIZON)
        if skip is None and count > NOISE_INTERVAL and count % NOISE_INTERVAL:
            for _, means, grads in self._pieces(moves, source.key):
                _move(means, grads, source.scale, weight)
        else:
            found = self._move_and_measure(moves, source, weight, skip)
            # A sample lies further from the mean of those before it than from its own.
            found /= 1 + averages[0].concentration
            share = max(NOISE_FADING / (max(count - 1, 1) + NOISE_FADING - 1), weight)
            # Later samples stand for those that were not looked at.
            share = share if count <= NOISE_INTERVAL else 1 - (1 - share) ** NOISE_INTERVAL
            if count > 1:
                torch._foreach_lerp_([a.variance for a in averages], list(found.unbind()), share)
        for average in averages:
            average.advance(weight)

    def _pieces(
        self, moves: Sequence[Move], key: str | None
    ) -> Iterator[tuple[list[nn.Parameter], list[Tensor], list[Tensor]]]:
        """Yield runs of averages and of what is averaged, so short that temporaries stay small.

        key: of the optimizer's state; None for the gradients themselves.
        """
        slices = [Slice.whole(local(self.mean(move.parameter)), move) for move in moves]
        for batch in packed(slices, most_entries(slices[0].values.device.type)):
            owners = [s.move.parameter for s in batch.slices]
            grads = [
                s.seen(local(p.grad if key is None else s.move.state[key])).to(s.values.dtype)  # type: ignore[arg-type]: what has moved has a gradient
                for s, p in zip(batch.slices, owners, strict=True)
            ]
            yield owners, [s.seen(s.values) for s in batch.slices], grads

    def _move_and_measure(
        self, moves: Sequence[Move], source: GradientAverage, weight: float, skip: Tensor | None
    ) -> Tensor:
        """Move means by a share of the way; return the mean square of each parameter's way."""
        parameters = [move.parameter for move in moves]
        places = {p: place for place, p in enumerate(parameters)}
        found = local(self.mean(parameters[0])).new_zeros(len(parameters))
        for owners, means, grads in self._pieces(moves, source.key):
            apart = _apart(grads, source.scale, means)
            for one in apart if skip is not None else ():
                one.masked_fill_(skip != 0, 0.0)
            torch._foreach_add_(means, apart, alpha=weight)
            where = torch.tensor([places[p] for p in owners]).to(found.device, non_blocking=True)
            found.index_add_(0, where, torch.stack(torch._foreach_norm(apart)).square())
        return all_reduce_counts(found, parameters) / found.new_tensor(
            [p.numel() for p in parameters]
        )

    def known(self, moves: Moves) -> Moves:
        """Return the moves of parameters whose average is evidence."""
        some = {p for p, average in self.by_parameter.items() if average.count >= LEAST_SAMPLES}
        return {p: move for p, move in moves.items() if p in some}

    def mean(self, p: nn.Parameter) -> Tensor:
        """Return the average of a parameter's gradients, placed as it is."""
        return self.by_parameter[p].values

    def exceeds(self, batch: Batch, slope: float) -> Tensor:
        """Say which entries of `entry_evidence` are larger than a slope, by one comparison."""
        least = [
            (noise + (slope + CONFIDENCE * noise.sqrt()).square()).sqrt()
            for noise in self._noises(batch)
        ]
        return batch.values().abs() > _laid(least, batch)

    def entry_evidence(self, batch: Batch) -> Tensor:
        """Return averages of entries, less what noise makes of each.

        batch: of averages.
        """
        values = batch.values()
        return _less_noise(values.abs(), _laid(self._noises(batch), batch), 1).copysign_(values)

    def group_evidence(self, batches: Sequence[Batch]) -> Tensor:
        """Return averages of groups as rows, each shorter by what noise makes of its length.

        batches: of averages, which stand side by side.
        """
        values = [batch.values() for batch in batches]
        rows = torch.cat(values, dim=1) if len(values) > 1 else values[0]
        size = rows.shape[1]
        noises = [_laid(self._noises(batch), batch) for batch in batches]
        shares = [n * (v.shape[1] / size) for n, v in zip(noises, values, strict=True)]
        lengths = torch.linalg.vector_norm(rows, dim=1)
        left = _less_noise(lengths, torch.stack(shares).sum(0), size)
        left /= lengths.clamp_min_(torch.finfo(rows.dtype).tiny)
        return rows * left[:, None]

    def _noises(self, batch: Batch) -> list[Tensor]:
        return [self.by_parameter[s.move.parameter].noise for s in batch.slices]

    def state_dict(self, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
        """Return the averages by parameter name; a collective for shards."""
        return {
            names[p]: (full_tensor(a.values).clone(), a.variance.clone(), a.count, a.concentration)
            for p, a in self.by_parameter.items()
            if p in names
        }

    def load_state_dict(
        self, saved: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Take over saved averages of these parameters, by name."""
        for name, (values, variance, count, concentration) in saved.items():
            if name in parameters:
                own = self.by_parameter[parameters[name]] = _empty(parameters[name])
                fill(own.values, values)
                own.variance.copy_(variance)
                own.count, own.concentration = count, concentration


def _empty(p: nn.Parameter) -> Average:
    dtype = torch.promote_types(p.dtype, torch.float32)
    values = torch.zeros_like(p.detach(), dtype=dtype)
    return Average(values, local(values).new_zeros(()))


def _interval(source: GradientAverage) -> int:
    """Return how many steps lie between two samples of what the optimizer has averaged."""
    return max(min(SAMPLE_INTERVAL, round(source.span)), 1)


def _laid(numbers: Sequence[Tensor], batch: Batch) -> Tensor:
    """Lay a number for each slice of a batch over its entries, or its groups."""
    parts = [
        number.expand(len(s.rows(s.values)))
        for number, s in zip(numbers, batch.slices, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _less_noise(lengths: Tensor, noise: Tensor, size: int) -> Tensor:
    """Return how long averages are, less what noise makes of them.

    Noise in all directions adds its square to the square of the length, and in that of the average
    it is `CONFIDENCE` standard deviations at most.

    noise: variance of an entry. size: number of entries.
    """
    free = lengths.square().sub_(noise * size).clamp_min_(0).sqrt_()
    return free.sub_(noise.sqrt() * CONFIDENCE).clamp_min_(0)


def _apart(grads: list[Tensor], factor: Number, means: list[Tensor]) -> list[Tensor]:
    """Return how far scaled gradients are from their means."""
    apart = list(torch._foreach_mul(grads, factor))
    torch._foreach_sub_(apart, means)
    return apart


def _move(means: list[Tensor], grads: list[Tensor], factor: Number, weight: float) -> None:
    """Move means by a share of the way to scaled gradients."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(means, _apart(grads, factor, means), alpha=weight)
    elif factor == 1.0:
        torch._foreach_lerp_(means, grads, weight)
    else:
        torch._foreach_mul_(means, 1 - weight)
        torch._foreach_add_(means, grads, alpha=weight * factor)
