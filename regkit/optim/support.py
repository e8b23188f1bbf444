"""The support: which zeros may wake, and how settled the pattern of zeros is.

Under the plain proximal step a zero wakes as soon as the optimizer's short average of gradients
leaves the subdifferential of the penalty, which the noise of mini-batches alone brings about. Here
it wakes on evidence: the gradient, averaged over the last thousand steps and less what noise alone
would make of that average, leaves the subdifferential. With full gradients that is the plain step,
so minimisers stay where they are.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regkit.ops.gate import Gate, keep_zeros, recorded
from regkit.ops.threshold import soft_threshold
from regkit.optim.batching import Batch, beside, entry_batches, flat, is_dense, most_entries
from regkit.optim.parts import Chain, Part, active
from regkit.optim.sharding import group_batches
from regkit.optim.step_size import AverageOf, GradientAverage, Move, StepSizeOf
from regkit.penalties.penalty import WeightPenalty
from regkit.structure.distributed import (
    gathered_groups,
    local,
    own_groups,
    placement,
    plain,
    put_back,
    summed,
    whole_rows,
)

Moves = Mapping[nn.Parameter, Move]
ScaleOf = Callable[[Part], WeightPenalty | None]

# Steps that the average of gradients goes back.
HORIZON = 1000
# Shorter trainings are forgotten as they go on: sample k weighs as k^(FADING - 1) (Shamir and
# Zhang, ICML 2013, "polynomial-decay averaging").
FADING = 2
# Noise is that of late: while training falls towards a minimum, gradients differ by more than it.
NOISE_FADING = 8
# Steps between two samples, at most: what the optimizer itself averages lies between.
INTERVAL = 10
# Samples before which there is no evidence: one says nothing about its noise.
LEAST_SAMPLES = 2
# Samples of which each tells of the noise; then one in as many does.
OFTEN = 10
# Standard deviations of noise that an average has to be clear of.
CONFIDENCE = 2.0
# Steps after which gates are opened and closed, once training has run for as many as EARLY; before
# that it is every INTERVAL steps.
WEIGHING = 50
EARLY = 100
# Steps between samples of what flips in one; it is prime to the others, so that all come round.
STRIDE = 31
# Steps from one comparison of supports to the next; each compares with INTERVAL steps before. In
# five of them one has gates open within, as often as any INTERVAL steps do.
COMPARING = 30
# Samples that a report goes back: about 200 steps each.
FLIP_SAMPLES = 10
OVERLAP_SAMPLES = 5
# Columns of a sample of a step: entries, and those of them that flipped in it.
TOTAL, FLIPS = range(2)
# Columns of a sample of an overlap: zeros, zeros that should wake, entries that are alive now and
# were before, or one of the two.
ZERO, WAKES, BOTH, EITHER = range(4)


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


class SupportReport(NamedTuple):
    """How settled the zeros are of penalties that make them; shares of the entries they act on.

    flips: went from zero to not zero, or back, in one step. jaccard: of the entries that are not
    zero now or were not ten steps before, those that both holds for. should_wake: of the zeros,
    those that the averaged gradient says to be none. Means over about the last 200 steps.
    """

    flips: float
    jaccard: float
    should_wake: float

    @property
    def is_settled(self) -> bool:
        """Say whether zeros stay: 0.05 % flip in a step, and 98 % are the same ten steps on."""
        return self.flips <= 5e-4 and self.jaccard >= 0.98


class Support:
    """Gates of one optimizer's zeros, averages that open them, and what became of the zeros.

    Memory: five bytes for each weight that a penalty may make zero.

    holds: False lets every zero wake at any time; it is counted all the same.
    entries: gates (`regkit.ops.gate`) of the parameters whose entries a penalty makes zero, placed
        as they are. groups: gates of groups, by `Part.key`: of this rank's where it has them whole.
    members: parameters that have gates. version: changes with every new gate.
    """

    def __init__(self, holds: bool = True) -> None:
        self.holds = holds
        self.averages: dict[nn.Parameter, Average] = {}
        self.entries: dict[nn.Parameter, Tensor] = {}
        self.groups: dict[str, Tensor] = {}
        self.members: Sequence[nn.Parameter] = ()
        self.version = 0
        self._alone: Sequence[Part] = ()
        self._together: Sequence[Part] = ()
        self._thinned: Mapping[nn.Parameter, Part] = {}
        self._flips: deque[Tensor] = deque(maxlen=FLIP_SAMPLES)
        self._overlaps: deque[Tensor] = deque(maxlen=OVERLAP_SAMPLES)

    def watch(
        self, chains: Mapping[nn.Parameter, Chain], alone: Sequence[Part], together: Sequence[Part]
    ) -> None:
        """Make the gates that are missing, of weights as they are before a step.

        alone, together: as `sharding.divide` returns them; a collective where there are new ones of
        the latter.
        """
        self._alone = [part for part in alone if makes_zeros([part])]
        self._together = [part for part in together if makes_zeros([part])]
        entrywise = [p for p, chain in chains.items() if makes_zeros(chain)]
        known = set(entrywise)
        self._thinned = {
            p: part
            for part in (*self._alone, *self._together)
            if (part.penalty.slope_at_zero(1) or (0.0,))[0] > 0
            for p in part.parameters
            if p not in known
        }
        for p in (*entrywise, *self._thinned):
            if not self._serves(p):
                gate = torch.zeros_like(p.detach(), dtype=torch.uint8)
                local(gate).copy_(_begun(local(p.detach()) == 0))
                self._add(self.entries, p, gate)
        for part in self._alone:
            if len(self.groups.get(part.key, ())) != part.bundle.num_groups:
                rows = part.bundle.rows(lambda p: local(p.detach()))
                self._add(self.groups, part.key, _begun((rows == 0).all(1)))
        new = [part for part in self._together if part.key not in self.groups]
        for key, rows in whole_rows([(part.key, part.bundle) for part in new]):
            self._add(self.groups, key, _begun((rows == 0).all(1)))
        grouped = (p for part in (*self._alone, *self._together) for p in part.parameters)
        self.members = list(dict.fromkeys([*self.entries, *grouped]))

    def resync(self, changed: Collection[nn.Parameter]) -> None:
        """Look again which weights are zero, of parameters that somebody else has written to.

        A collective where groups lie on several ranks.
        """
        for p in changed:
            if p in self.entries:
                _record(local(self.entries[p]), local(p.detach()) == 0)
        for part in self._alone:
            if set(part.parameters) & set(changed):
                rows = part.bundle.rows(lambda p: local(p.detach()))
                _record(self.groups[part.key], (rows == 0).all(1))
        some = [part for part in self._together if set(part.parameters) & set(changed)]
        for key, rows in whole_rows([(part.key, part.bundle) for part in some]):
            _record(self.groups[key], (rows == 0).all(1))

    def _serves(self, p: nn.Parameter) -> bool:
        """Say whether the gate of a parameter is there, and lies as it does."""
        gate = self.entries.get(p)
        if gate is None:
            return False
        own, values = local(gate), local(p.detach())
        same = own.device == values.device and own.shape == values.shape
        return same and (own.stride() == values.stride() or not is_dense(values))

    def _add(self, gates: dict[Any, Tensor], key: Any, gate: Tensor) -> None:
        old, own = gates.get(key), local(gate)
        if not self.holds:
            own.bitwise_or_(int(Gate.FREE))
        if old is not None and local(old).shape == own.shape:  # the weight has moved in memory
            own.bitwise_or_(local(old).to(own.device) & int(Gate.OPEN))
        gates[key] = gate
        self.version += 1

    def let_go(self) -> None:
        """Let every zero wake from now on."""
        self.holds = False
        for gate in self._all():
            local(gate).bitwise_or_(int(Gate.FREE))

    def keep_thinned(self, moves: Moves) -> None:
        """Put back single zeros that may not wake in groups that live, after the prox of groups."""
        for p in moves:
            if p in self._thinned:
                values, gate = local(p.detach()), local(self.entries[p])
                values.copy_(keep_zeros(values, gate))
                _record(gate, values == 0)

    def snapshot(self) -> list[Tensor]:
        """Return copies of all gates."""
        gates = [local(gate) for gate in self._all()]
        copies = [torch.empty_like(gate) for gate in gates]
        if gates:
            torch._foreach_copy_(copies, gates)
        return copies

    def restore(self, snapshot: Sequence[Tensor]) -> None:
        """Bring all gates back to a snapshot."""
        for gate, kept in zip(self._all(), snapshot, strict=True):
            local(gate).copy_(kept)

    def _all(self) -> list[Tensor]:
        return [*self.entries.values(), *self.groups.values()]

    def shut(self) -> None:
        """Close all gates: zeros stay zero until the next evidence."""
        for gate in self._all():
            local(gate).bitwise_and_(int(Gate.ZERO | Gate.SEEN))

    def sample(
        self,
        moves: Moves,
        average_of: AverageOf,
        unscale: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> None:
        """Take the gradients of a step into the averages (a collective for shards).

        moves: of the parameters to be averaged.
        unscale: what raw gradients are to be divided by. skip: where it is not 0 they are left out.
        """
        alike: dict[Any, list[nn.Parameter]] = defaultdict(list)
        for p, move in moves.items():
            if p not in self.averages:
                values = torch.zeros_like(p.detach(), dtype=_accurate(p))
                self.averages[p] = Average(values, local(values).new_zeros(()))
            where = local(self.averages[p].values).device
            alike[id(move.group), self.averages[p].count, where].append(p)
        for parameters in alike.values():
            self._take(parameters, moves, average_of(moves[parameters[0]]), unscale, skip)

    def _take(
        self,
        parameters: Sequence[nn.Parameter],
        moves: Moves,
        kept: GradientAverage,
        unscale: Tensor | None,
        skip: Tensor | None,
    ) -> None:
        averages = [self.averages[p] for p in parameters]
        count, concentration = averages[0].count + 1, averages[0].concentration
        weight = max(FADING / (count + FADING - 1), interval_of(kept) / HORIZON)
        factor, raw = kept.scale, kept.key is None
        if raw and unscale is not None:
            factor = factor / unscale
        pieces = _pieces(parameters, self.averages, moves, kept.key)
        if count > OFTEN and count % OFTEN and not (raw and skip is not None):
            for _, means, grads in pieces:
                _move(means, grads, factor, weight)
            for average in averages:
                average.advance(weight)
            return
        places = {p: place for place, p in enumerate(parameters)}
        owned: list[int] = []
        lengths: list[Tensor] = []
        for owners, means, grads in pieces:
            apart = _apart(grads, factor, means)
            for one in apart if raw and skip is not None else ():
                one.masked_fill_(skip != 0, 0.0)
            lengths += _moved(means, apart, weight)
            owned += [places[p] for p in owners]
        squares = torch.stack(lengths).square()
        where = torch.tensor(owned).to(squares.device, non_blocking=True)
        found = squares.new_zeros(len(parameters)).index_add(0, where, squares)
        found = summed(found, parameters)
        found /= found.new_tensor([max(p.numel(), 1) for p in parameters])
        # A sample lies further from the mean of those before it than from its own.
        found /= 1 + concentration
        share = max(NOISE_FADING / (max(count - 1, 1) + NOISE_FADING - 1), weight)
        # Later samples stand for those that were not looked at.
        share = share if count <= OFTEN else 1 - (1 - share) ** OFTEN
        if count > 1:
            variances = [average.variance for average in averages]
            torch._foreach_lerp_(variances, list(found.unbind()), share)
        for average in averages:
            average.advance(weight)

    def weigh(
        self,
        chains: Mapping[nn.Parameter, Chain],
        scale: ScaleOf,
        moves: Moves,
        step_size: StepSizeOf,
        opens: bool,
    ) -> None:
        """Open the gates of what the averages say to be no zero, and close all others.

        A zero stays where the prox of a step from it, along the averaged gradient, is zero again.

        scale: gives the penalty of a part at its strength.
        opens: False closes all, and only counts.
        """
        known = {
            p: move
            for p, move in moves.items()
            if p in self.averages and self.averages[p].count >= LEAST_SAMPLES
        }
        kinds = {p: active(chains[p], scale) for p in self.entries if p in chains}
        for p, part in self._thinned.items():
            now = scale(part)
            kinds[p] = () if now is None else (now,)
        kinds = {p: penalties for p, penalties in kinds.items() if penalties}
        for penalties, batch in entry_batches(kinds, known, self.entries, self._mean):
            rows = batch.values()
            acting = [penalty for penalty in penalties if not penalty.decoupled]
            slope = acting[0].slope_at_zero(1) if len(acting) == 1 else None
            if slope is not None:
                found = rows.abs() > self._threshold(batch, slope[0])
            else:
                evidence = _clear(rows.abs(), self._noise(batch), 1).copysign_(rows)
                step = batch.step(step_size)
                trial = evidence.mul_(-step)
                for penalty in acting:
                    trial = penalty.prox(trial, step)
                found = trial != 0
            self._open(batch, found, opens)
        for penalty, batches in group_batches(
            self._alone, self._together, scale, known, step_size, self.groups, self._whole_mean
        ):
            values = [batch.values() for batch in batches]
            noises = [self._noise(batch) for batch in batches]
            sizes = [v.shape[1] for v in values]
            shares = [n * (size / sum(sizes)) for n, size in zip(noises, sizes, strict=True)]
            noise = torch.stack(shares).sum(0)
            rows = torch.cat(values, dim=1) if len(values) > 1 else values[0]
            lengths = torch.linalg.vector_norm(rows, dim=1)
            left = _clear(lengths, noise, sum(sizes))
            left /= lengths.clamp_min_(torch.finfo(rows.dtype).tiny)
            evidence = rows * left[:, None]
            slope = penalty.slope_at_zero(sum(sizes))
            if slope is not None:
                lengths = torch.linalg.vector_norm(soft_threshold(evidence, slope[0]), dim=1)
                found = lengths > slope[1]
            else:
                step = beside([batch.step(step_size) for batch in batches], values)
                found = (penalty.prox(evidence * -step, step) != 0).any(1)
            self._open(batches[0], found, opens)

    def _mean(self, p: nn.Parameter) -> Tensor:
        return local(self.averages[p].values)

    def _whole_mean(self, p: nn.Parameter) -> Tensor:
        return self.averages[p].values

    def _noise(self, batch: Batch) -> Tensor:
        """Return the variance of each entry, or of the entries of each group."""
        parts = [
            self.averages[s.move.parameter].noise.expand(len(s.rows(s.values)))
            for s in batch.slices
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _threshold(self, batch: Batch, slope: float) -> Tensor:
        """Return how large the mean of an entry has to be, for `_clear` of it to exceed a slope."""
        parts = []
        for s in batch.slices:
            noise = self.averages[s.move.parameter].noise
            least = (noise + (slope + CONFIDENCE * noise.sqrt()).square()).sqrt()
            parts.append(least.expand(len(s.rows(s.values))))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _open(self, batch: Batch, found: Tensor, opens: bool) -> None:
        gates = batch.gates()
        assert gates is not None, "what has no gate is not weighed"
        ones = found.view(torch.uint8)
        kept = gates & int(Gate.ZERO | Gate.SEEN | Gate.FREE)
        kept |= (ones & gates) << 4  # Gate.DUE, of those at zero
        if opens and self.holds:
            kept |= ones << 1  # Gate.OPEN
        batch.write_gates(kept)

    def count_flips(self, before: Sequence[Tensor], step: int) -> None:
        """Add a sample of a step (a collective for shards).

        before: `snapshot` of before the step. Waits for no GPU.
        """
        # Where gates open much flips at once: such a step stands for itself, any other for many.
        weight = 1 if is_weighed(step) else STRIDE

        def count(now: Tensor, old: Tensor) -> list[Tensor]:
            flips = _num_ones((now ^ old) & int(Gate.ZERO))
            return [torch.full_like(flips, now.numel() * weight), flips * weight]

        self._add_sample(self._flips, before, count)

    def mark(self) -> None:
        """Note which units are not zero, for `count_overlap` to compare with."""
        for gate in self._all():
            own = local(gate)
            alive = ((own & int(Gate.ZERO)) ^ int(Gate.ZERO)) << 2  # Gate.SEEN
            own.bitwise_and_(~int(Gate.SEEN) & 0xFF).bitwise_or_(alive)

    def count_overlap(self) -> None:
        """Add a sample of the steps since `mark` (a collective for shards)."""

        def count(now: Tensor, _: Tensor) -> list[Tensor]:
            zero, seen = now & int(Gate.ZERO), (now & int(Gate.SEEN)) >> 2
            gone, due = _num_ones(zero & seen), _num_ones((now & int(Gate.DUE)) >> 4)
            num_seen, num_zero = _num_ones(seen), _num_ones(zero)
            return [num_zero, due, num_seen - gone, now.numel() - num_zero + gone]

        self._add_sample(self._overlaps, self._all(), count)

    def _add_sample(
        self,
        samples: deque[Tensor],
        others: Sequence[Tensor],
        count: Callable[[Tensor, Tensor], list[Tensor]],
    ) -> None:
        """Add up what is counted over all gates and ranks, each unit as many as it has entries.

        others: what belongs to each gate. count: gives the columns for units of both.
        """
        rows: dict[Any, Tensor] = {}
        leads: dict[Any, Tensor] = {}
        for lead, size, now, old in self._chunks(others):
            kind = placement(lead), size
            found = torch.stack(count(now, old)).double() * size
            rows[kind] = found + rows[kind] if kind in rows else found
            leads.setdefault(kind, lead)
        if rows:
            where = next(iter(rows.values())).device
            counts = torch.stack([row.to(where) for row in rows.values()])
            samples.append(summed(counts, list(leads.values())).sum(0))

    def _chunks(self, others: Sequence[Tensor]) -> Iterator[tuple[Tensor, int, Tensor, Tensor]]:
        """Yield all gates, and what belongs to them in `others`, in runs that a cache holds.

        Each after a tensor that is placed as they are, and the number of entries of a unit.
        """
        parts = {part.key: part for part in (*self._alone, *self._together)}
        alone = {part.key for part in self._alone}
        small: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        leads: dict[Any, Tensor] = {}
        keys = [*self.entries, *self.groups]
        for key, gate, other in zip(keys, self._all(), others, strict=True):
            size, lead = 1, gate
            if isinstance(key, str):
                if key not in parts:
                    continue
                size = parts[key].bundle.size
                lead = parts[key].parameters[0] if key in alone else gate
            own = local(gate)
            pair = flat(own, own), flat(local(other), own)
            most = most_entries(own.device.type)
            kind = placement(lead), size
            leads.setdefault(kind, lead)
            if 4 * own.numel() <= most:
                small[kind].append(pair)
                continue
            for now, old in zip(*(half.split(most) for half in pair), strict=True):
                yield lead, size, now, old
        for kind, pairs in small.items():
            now, old = (torch.cat(half) for half in zip(*pairs, strict=True))
            yield leads[kind], kind[1], now, old

    def totals(self) -> tuple[list[float], list[float]] | None:
        """Return the sums of the samples' columns; None before the first. Waits for a GPU."""
        if not (self._flips and self._overlaps):
            return None
        flips, overlaps = (torch.stack(list(s)).sum(0) for s in (self._flips, self._overlaps))
        return flips.tolist(), overlaps.tolist()

    def state_dict(self, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
        """Return everything, by parameter name; a collective for shards."""
        alone = {part.key: part for part in self._alone}
        return {
            "averages": {
                names[p]: (plain(a.values).clone(), a.variance.clone(), a.count, a.concentration)
                for p, a in self.averages.items()
                if p in names
            },
            "entries": {names[p]: plain(g).clone() for p, g in self.entries.items() if p in names},
            "groups": {
                key: gathered_groups(g, alone[key].bundle) if key in alone else g.clone()
                for key, g in self.groups.items()
            },
            "flips": list(self._flips),
            "overlaps": list(self._overlaps),
        }

    def load_state_dict(
        self, saved: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Take over a saved state.

        parameters: those of the optimizer, by the names in the state.
        """
        for name, (values, variance, count, concentration) in saved["averages"].items():
            if name in parameters:
                p = parameters[name]
                own = torch.zeros_like(p.detach(), dtype=_accurate(p))
                self.averages[p] = Average(
                    _placed(values, own), variance.to(local(own).device), count, concentration
                )
        for name, gate in saved["entries"].items():
            if name in parameters:
                own = torch.zeros_like(parameters[name].detach(), dtype=torch.uint8)
                self.entries[parameters[name]] = _placed(gate, own)
        parts = {part.key: part for part in (*self._alone, *self._together)}
        alone = {part.key for part in self._alone}
        for key, gate in saved["groups"].items():
            if key in parts:
                bundle = parts[key].bundle
                where = local(bundle.pieces[0].parameter).device
                own = own_groups(gate, bundle) if key in alone else gate
                self.groups[key] = own.to(where, copy=True)
        self._flips.extend(saved["flips"])
        self._overlaps.extend(saved["overlaps"])
        self.version += 1


def _accurate(p: nn.Parameter) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)


def _begun(is_zero: Tensor) -> Tensor:
    """Return gates of units that nothing is known of but whether they are zero."""
    return torch.where(is_zero, int(Gate.ZERO), int(Gate.SEEN)).to(torch.uint8)


def _record(gate: Tensor, is_zero: Tensor) -> None:
    gate.copy_(recorded(gate, is_zero))


def report_of(supports: Sequence[Support]) -> SupportReport | None:
    """Return how settled the zeros of several optimizers are; None before ten steps or so."""
    found = [totals for support in supports if (totals := support.totals()) is not None]
    if not found:
        return None
    flips, overlaps = (
        [sum(column) for column in zip(*rows, strict=True)] for rows in zip(*found, strict=True)
    )
    return SupportReport(
        flips[FLIPS] / max(flips[TOTAL], 1),
        overlaps[BOTH] / overlaps[EITHER] if overlaps[EITHER] else 1.0,
        overlaps[WAKES] / max(overlaps[ZERO], 1),
    )


def makes_zeros(chain: Sequence[Part]) -> bool:
    """Say whether some penalty of a chain makes weights zero."""
    return any(part.penalty.sparsifies and not part.penalty.constraint for part in chain)


def interval_of(kept: GradientAverage) -> int:
    """Return how many steps lie between two samples of what the optimizer has averaged."""
    return max(min(INTERVAL, round(kept.span)), 1)


def is_compared(step: int) -> bool:
    """Say whether supports are compared after this step."""
    return step % COMPARING == INTERVAL


def is_weighed(step: int) -> bool:
    """Say whether gates are opened and closed at this step."""
    return step > 0 and step % (INTERVAL if step <= EARLY else WEIGHING) == 0


def _num_ones(bits: Tensor) -> Tensor:
    """Return the sum of bytes that are 0 or 1, six times as fast as torch does."""
    flat_bits = bits.contiguous().view(-1)
    whole = flat_bits.numel() // 1000 * 1000
    if whole == 0:
        return flat_bits.sum()
    # Eight sums side by side in each number, of which none is too large for a byte.
    packed = flat_bits[:whole].view(torch.int64).view(-1, 125).sum(1)
    return packed.view(torch.uint8).sum() + flat_bits[whole:].sum()


def is_sampled(step: int) -> bool:
    """Say whether flips are counted in this step: where gates open, and in a few others."""
    return is_weighed(step) or step % STRIDE == 0


def _clear(lengths: Tensor, noise: Tensor, size: int) -> Tensor:
    """Return how long averages are, less what noise makes of them.

    Noise in all directions adds its square to the square of the length, and in that of the average
    it is `CONFIDENCE` standard deviations at most.

    noise: variance of an entry. size: number of entries.
    """
    free = lengths.square().sub_(noise * size).clamp_min_(0).sqrt_()
    return free.sub_(noise.sqrt() * CONFIDENCE).clamp_min_(0)


def _pieces(
    parameters: Sequence[nn.Parameter],
    averages: Mapping[nn.Parameter, Average],
    moves: Moves,
    key: str | None,
) -> Iterator[tuple[list[nn.Parameter], list[Tensor], list[Tensor]]]:
    """Yield runs of averages and of what is averaged, so many that temporaries stay small.

    key: of the optimizer's state; None for the gradients themselves.
    """
    owners: list[nn.Parameter] = []
    means: list[Tensor] = []
    grads: list[Tensor] = []
    room = most = 0
    for p in parameters:
        mean = local(averages[p].values)
        kept = moves[p].state[key] if key is not None else p.grad
        assert kept is not None, "what has moved has a gradient"
        most = most_entries(mean.device.type)
        parts = zip(
            flat(mean, mean).split(most),
            flat(local(kept).detach(), mean).to(mean.dtype).split(most),
            strict=True,
        )
        for one, other in parts:
            if owners and one.numel() > room:
                yield owners, means, grads
                owners, means, grads, room = [], [], [], most
            owners, means, grads = [*owners, p], [*means, one], [*grads, other]
            room = (room if len(owners) > 1 else most) - one.numel()
    if owners:
        yield owners, means, grads


# torch has no public names for operations on lists.
# pyright: reportPrivateImportUsage=false


def _apart(grads: list[Tensor], factor: Any, means: list[Tensor]) -> list[Tensor]:
    """Return how far scaled gradients are from their means.

    factor: a number, or a 0-d tensor.
    """
    apart = list(torch._foreach_mul(grads, factor))
    torch._foreach_sub_(apart, means)
    return apart


def _move(means: list[Tensor], grads: list[Tensor], factor: Any, weight: float) -> None:
    """Move means by a share of the way to scaled gradients."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(means, _apart(grads, factor, means), alpha=weight)
    elif factor == 1.0:
        torch._foreach_lerp_(means, grads, weight)
    else:
        torch._foreach_mul_(means, 1 - weight)
        torch._foreach_add_(means, grads, alpha=weight * factor)


def _moved(means: list[Tensor], apart: list[Tensor], weight: float) -> Sequence[Tensor]:
    """Move means by a share of the way; return how long each way was."""
    lengths = torch._foreach_norm(apart)
    torch._foreach_add_(means, apart, alpha=weight)
    return lengths


def _placed(whole: Tensor, into: Tensor) -> Tensor:
    """Write a whole tensor, or this rank's part of it, into a tensor that is placed already."""
    if hasattr(into, "placements"):
        put_back({into: whole.to(local(into).device)}, {into: into})  # type: ignore[dict-item]
        return into
    return into.copy_(whole)
