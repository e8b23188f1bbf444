"""The support: which zeros may wake.

Under the plain proximal step a zero wakes as soon as the optimizer's short average of gradients
leaves the subdifferential of the penalty, which the noise of mini-batches alone brings about. Here
it wakes on evidence: the gradient, averaged over the last thousand steps and less what noise alone
would make of that average, leaves the subdifferential. With full gradients that is the plain step,
so minimisers stay where they are.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regkit.ops.gate import Gate, keep_zeros, recorded
from regkit.ops.threshold import soft_threshold
from regkit.optim.batching import Batch, beside, entry_batches, flat, is_dense, most_entries
from regkit.optim.gradient_averages import SAMPLE_INTERVAL, GradientAverages
from regkit.optim.parts import Chain, Part, active
from regkit.optim.sharding import DividedParts, fill, group_batches
from regkit.optim.step_size import Moves, StepSizeOf
from regkit.penalties.penalty import WeightPenalty
from regkit.structure.distributed import (
    full_tensor,
    gathered_groups,
    local,
    own_groups,
    placement,
    whole_rows,
)

ScaleOf = Callable[[Part], WeightPenalty | None]

# Steps after which gates are opened and closed, once training has run for as many as EARLY; before
# that it is whenever averages have a new sample.
OPENING_INTERVAL = 50
EARLY = 100


class Support:
    """The gates (`regkit.ops.gate`) of one optimizer's zeros: a byte for each.

    holds: False lets every zero wake at any time; it is counted all the same.
    entries: gates of the parameters whose entries a penalty makes zero, placed as they are.
    groups: gates of groups, by `Part.key`: of this rank's where it has them whole.
    members: parameters that have gates. version: changes with every new gate.
    """

    def __init__(self, holds: bool = True) -> None:
        self.holds = holds
        self.entries: dict[nn.Parameter, Tensor] = {}
        self.groups: dict[str, Tensor] = {}
        self.members: Sequence[nn.Parameter] = ()
        self.version = 0
        # What makes zeros: of entries, single ones within groups among them; and of groups.
        self._chains: dict[nn.Parameter, Chain] = {}
        self._parts = DividedParts()
        # Parameters in whose groups single entries are made zero, too.
        self._thinned: list[nn.Parameter] = []
        self._has_shards = False
        # Members, and what their memory was like.
        self._seen: tuple[Sequence[nn.Parameter], list[tuple[int, int]]] = ((), [])

    def make_gates(self, chains: Mapping[nn.Parameter, Chain], parts: DividedParts) -> None:
        """Make the gates that are missing, of weights as they are before a step.

        A collective where groups that ranks share are new.
        """
        self._parts = DividedParts(*([p for p in some if makes_zeros([p])] for some in parts))
        entrywise = {p: chain for p, chain in chains.items() if makes_zeros(chain)}
        self._chains = dict(entrywise)
        grouped = self._parts.every
        for part in grouped:  # some make single zeros within groups, too
            if (part.penalty.slope_at_zero(1) or (0.0,))[0] > 0:
                self._chains |= {p: (part,) for p in part.parameters if p not in entrywise}
        self._thinned = [p for p in self._chains if p not in entrywise]
        for p in self._chains:
            if not self._fits(p):
                gate = torch.zeros_like(p.detach(), dtype=torch.uint8)
                local(gate).copy_(_first_gate(local(p.detach()) == 0))
                self._add(self.entries, p, gate)
        missing = {
            p.key for p in grouped if len(self.groups.get(p.key, ())) != p.group_set.num_groups
        }
        for key, is_zero in self._are_zero(lambda part: part.key in missing):
            self._add(self.groups, key, _first_gate(is_zero))
        self.members = list(
            dict.fromkeys([*self.entries, *(p for g in grouped for p in g.parameters)])
        )
        self._has_shards = any(hasattr(p, "placements") for p in self.members)

    def _fits(self, p: nn.Parameter) -> bool:
        """Say whether the gate of a parameter is there, and lies in memory as it does."""
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

    def _are_zero(self, wanted: Callable[[Part], bool]) -> Iterator[tuple[str, Tensor]]:
        """Yield by key which groups of some penalties are zero (a collective for shared ones)."""
        for part in filter(wanted, self._parts.local):
            rows = part.group_set.rows(lambda p: local(p.detach()))
            yield part.key, (rows == 0).all(1)
        shared = [(part.key, part.group_set) for part in self._parts.shared if wanted(part)]
        for key, rows in whole_rows(shared):
            yield key, (rows == 0).all(1)

    def remember_memory(self) -> None:
        """Note the state of the weights' memory, for `written_outside` to compare with."""
        self._seen = self.members, self._memory(self.members)

    def written_outside(self) -> list[nn.Parameter]:
        """Return the parameters that somebody has written to since `remember_memory`."""
        members, old = self._seen
        now = self._memory(members)
        if now == old:
            return []
        return [p for p, seen, found in zip(members, old, now, strict=True) if seen != found]

    def _memory(self, parameters: Sequence[nn.Parameter]) -> list[tuple[int, int]]:
        """Return what changes when somebody writes to parameters, or gives them other memory."""
        values = map(local, parameters) if self._has_shards else parameters
        return [(v._version, v.data_ptr()) for v in values]

    def record_outside_writes(self, written: Collection[nn.Parameter]) -> None:
        """Look again which weights of some parameters are zero (a collective for shared groups)."""
        for p in written:
            if p in self.entries:
                _record(local(self.entries[p]), local(p.detach()) == 0)
        for key, is_zero in self._are_zero(
            lambda part: not set(written).isdisjoint(part.parameters)
        ):
            _record(self.groups[key], is_zero)

    def open_by_evidence(
        self,
        averages: GradientAverages,
        scale: ScaleOf,
        moves: Moves,
        step_size: StepSizeOf,
        opens: bool,
    ) -> None:
        """Open the gates of what the averages say to be no zero, and close all others.

        A zero stays where the prox of a step from it, along the averaged gradient, is zero again.

        scale: gives the penalty of a part at its strength.
        opens: False closes all, and only notes which are due.
        """
        known = averages.known(moves)
        kinds = {p: active(chain, scale) for p, chain in self._chains.items()}
        kinds = {p: penalties for p, penalties in kinds.items() if penalties}
        for penalties, batch in entry_batches(
            kinds, known, self.entries, lambda p: local(averages.mean(p))
        ):
            wakes = _entries_wake(averages, penalties, batch, step_size)
            self._open(batch, wakes, opens)
        for penalty, batches in group_batches(
            self._parts, scale, known, step_size, self.groups, averages.mean
        ):
            wakes = _groups_wake(averages, penalty, batches, step_size)
            self._open(batches[0], wakes, opens)

    def _open(self, batch: Batch, wakes: Tensor, opens: bool) -> None:
        gates = batch.gates()
        assert gates is not None, "there is evidence for what has a gate alone"
        ones = wakes.view(torch.uint8)
        kept = gates & int(Gate.ZERO | Gate.SEEN | Gate.FREE)
        kept |= (ones & gates) << 4  # Gate.DUE, of those at zero
        if opens and self.holds:
            kept |= ones << 1  # Gate.OPEN
        batch.write_gates(kept)

    def close_all(self) -> None:
        """Close all gates: zeros stay zero until the next evidence."""
        for gate in self._all():
            local(gate).bitwise_and_(int(Gate.ZERO | Gate.SEEN))

    def free_all(self) -> None:
        """Let every zero wake from now on."""
        self.holds = False
        for gate in self._all():
            local(gate).bitwise_or_(int(Gate.FREE))

    def keep_single_zeros(self, moves: Moves) -> None:
        """Put back single zeros that may not wake in groups that live, after the prox of groups."""
        for p in self._thinned:
            if p in moves:
                values, gate = local(p.detach()), local(self.entries[p])
                values.copy_(keep_zeros(values, gate))
                _record(gate, values == 0)

    def mark_living(self) -> None:
        """Note on the gates which units are not zero now."""
        for gate in self._all():
            own = local(gate)
            alive = ((own & int(Gate.ZERO)) ^ int(Gate.ZERO)) << 2  # Gate.SEEN
            own.bitwise_and_(~int(Gate.SEEN) & 0xFF).bitwise_or_(alive)

    def snapshot(self) -> list[Tensor]:
        """Return copies of all gates."""
        gates = [local(gate) for gate in self._all()]
        copies = [torch.empty_like(gate) for gate in gates]
        if gates:
            torch._foreach_copy_(copies, gates)  # pyright: ignore[reportPrivateImportUsage]: no public name
        return copies

    def restore(self, snapshot: Sequence[Tensor]) -> None:
        """Bring all gates back to a snapshot."""
        for gate, kept in zip(self._all(), snapshot, strict=True):
            local(gate).copy_(kept)

    def _all(self) -> list[Tensor]:
        return [*self.entries.values(), *self.groups.values()]

    def runs(
        self, snapshot: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, int, Tensor, Tensor]]:
        """Yield all gates, as they are and were at a snapshot (default: now), in runs for a cache.

        Each after a tensor that is placed as they are, and the number of entries of a unit.
        """
        kinds = {g.key: (g.parameters[0], g.group_set.size) for g in self._parts.local}
        kinds |= {g.key: (self.groups[g.key], g.group_set.size) for g in self._parts.shared}
        units = [*((gate, 1) for gate in self.entries.values()), *map(kinds.get, self.groups)]
        small: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        leads: dict[Any, Tensor] = {}
        for unit, gate, old in zip(units, self._all(), snapshot or self._all(), strict=True):
            if unit is None:  # of a penalty that is no more
                continue
            lead, size = unit
            own = local(gate)
            pair = flat(own, own), flat(local(old), own)
            most = most_entries(own.device.type)
            kind = placement(lead), size
            leads.setdefault(kind, lead)
            if 4 * own.numel() <= most:
                small[kind].append(pair)
            else:
                for now, then in zip(*(half.split(most) for half in pair), strict=True):
                    yield lead, size, now, then
        for kind, pairs in small.items():
            now, then = (torch.cat(half) for half in zip(*pairs, strict=True))
            yield leads[kind], kind[1], now, then

    def state_dict(self, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
        """Return the gates, by name; a collective for shards."""
        group_sets = {part.key: part.group_set for part in self._parts.local}
        return {
            "entries": {
                names[p]: full_tensor(g).clone() for p, g in self.entries.items() if p in names
            },
            "groups": {
                key: gathered_groups(g, group_sets[key]) if key in group_sets else g.clone()
                for key, g in self.groups.items()
            },
        }

    def load_state_dict(
        self, saved: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Take over saved gates, of weights as they are now.

        parameters: those of the optimizer, by the names in the state.
        """
        for name, gate in saved["entries"].items():
            if name in parameters:
                p = parameters[name]
                self.entries[p] = torch.zeros_like(p.detach(), dtype=torch.uint8)
                fill(self.entries[p], gate)
        group_sets = {part.key: part.group_set for part in self._parts.local}
        for key, made in self.groups.items():
            if key in saved["groups"]:
                gate = saved["groups"][key]
                own = own_groups(gate, group_sets[key]) if key in group_sets else gate
                self.groups[key] = own.to(made.device, copy=True)
        self.version += 1
        self.remember_memory()


def makes_zeros(chain: Sequence[Part]) -> bool:
    """Say whether some penalty of a chain makes weights zero."""
    return any(part.penalty.sparsifies and not part.penalty.constraint for part in chain)


def gates_open_at(step: int) -> bool:
    """Say whether gates are opened and closed at this step."""
    return step > 0 and step % (SAMPLE_INTERVAL if step <= EARLY else OPENING_INTERVAL) == 0


def _entries_wake(
    averages: GradientAverages,
    penalties: Sequence[WeightPenalty],
    batch: Batch,
    step_size: StepSizeOf,
) -> Tensor:
    """Say which entries a step from zero would not leave there."""
    acting = [penalty for penalty in penalties if not penalty.decoupled]
    slope = acting[0].slope_at_zero(1) if len(acting) == 1 else None
    if slope is not None:
        return averages.exceeds(batch, slope[0])
    step = batch.step(step_size)
    trial = averages.entry_evidence(batch).mul_(-step)
    for penalty in acting:
        trial = penalty.prox(trial, step)
    return trial != 0


def _groups_wake(
    averages: GradientAverages,
    penalty: WeightPenalty,
    batches: Sequence[Batch],
    step_size: StepSizeOf,
) -> Tensor:
    """Say which groups a step from zero would not leave there."""
    evidence = averages.group_evidence(batches)
    slope = penalty.slope_at_zero(evidence.shape[1])
    if slope is not None:
        shrunk = soft_threshold(evidence, slope[0])
        return torch.linalg.vector_norm(shrunk, dim=1) > slope[1]
    steps = [batch.step(step_size) for batch in batches]
    step = beside(steps, [batch.values() for batch in batches])
    return (penalty.prox(evidence * -step, step) != 0).any(1)


def _first_gate(is_zero: Tensor) -> Tensor:
    """Return gates of units that nothing is known of but whether they are zero."""
    return torch.where(is_zero, int(Gate.ZERO), int(Gate.SEEN)).to(torch.uint8)


def _record(gate: Tensor, is_zero: Tensor) -> None:
    gate.copy_(recorded(gate, is_zero))
