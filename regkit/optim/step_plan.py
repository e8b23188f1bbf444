"""What kernels take over from torch: which weights, in which launches, with which numbers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regkit.ops.formula import Formula
from regkit.ops.kernel_args import MOST_FORMULAS, KernelArgs, Param, is_like
from regkit.ops.prox_pass import ProxPass, prepare
from regkit.optim.batching import is_dense
from regkit.optim.group_layout import geometry_of
from regkit.optim.kernel_params import ParamRow, ParamTable, kernel_params, on_device, sent
from regkit.optim.moves import LastFew, Roster
from regkit.optim.parts import Chain, Part
from regkit.optim.sharding import DividedParts, divide
from regkit.optim.step_size import Moves, StepSizeOf
from regkit.optim.support import Support, makes_zeros
from regkit.penalties.penalty import WeightPenalty
from regkit.structure.distributed import local

# The first moment that an update keeps, by update.
FIRST_MOMENT_KEYS = {"sgd": "momentum_buffer", "adamw": "exp_avg"}


@dataclass(eq=False)
class Launch:
    """A pass of a kernel over many weights, and what its numbers are made of.

    fresh: momentum buffers that it has begun, to become state of the optimizer.
    """

    prox_pass: ProxPass
    parameters: Sequence[nn.Parameter]
    rows: Sequence[ParamRow]
    device: torch.device
    fresh: Mapping[nn.Parameter, Tensor]
    _params: Tensor | None = field(default=None, init=False)
    _numbers: list[list[float]] = field(default_factory=list, init=False)
    # Which rows have rates that are tensors, and what those are multiplied by.
    _rated: tuple[Tensor, Tensor] = field(init=False)
    _strides: list[tuple[int, ...]] = field(init=False)
    _has_shards: bool = field(init=False)

    def __post_init__(self) -> None:
        self._strides = [w.stride() for w in self.prox_pass.args.weights]
        self._has_shards = any(hasattr(p, "placements") for p in self.parameters)

    def with_gradients(self) -> ProxPass | None:
        """Return the pass of this step, None where kernels do not serve.

        A gradient that is laid out otherwise than its weight is copied.
        """
        grads = [g for p in self.parameters if (g := p.grad) is not None]
        grads = list(map(local, grads)) if self._has_shards else grads
        weights = self.prox_pass.args.weights
        if [g.stride() for g in grads] != self._strides:
            grads = [
                g if is_like(g, w) else _laid_as(g, w) for g, w in zip(grads, weights, strict=True)
            ]
        found = self.prox_pass.refresh(grads)
        if found is not None:
            self.prox_pass = found.without_gradients()
        return found

    def run(
        self,
        moves: Moves,
        step_size: StepSizeOf,
        scale: Callable[[Part], WeightPenalty | None],
        skip: Tensor | None = None,
        grad_scale: Tensor | None = None,
        prox_pass: ProxPass | None = None,
    ) -> None:
        """Change the weights in place.

        skip: nothing is written where it is not 0. grad_scale: gradients are divided by it.
        prox_pass: as `with_gradients` returns it, where it updates.
        """
        steps = [step_size(moves[row.lead]) for row in self.rows]
        numbers = [
            kernel_params(row, step, moves[row.lead], scale)
            for row, step in zip(self.rows, steps, strict=True)
        ]
        on_tensors = [k for k, step in enumerate(steps) if isinstance(step.rate, Tensor)]
        if self._params is None or numbers != self._numbers:
            self._params = on_device(self.device, numbers, self._params)
            self._numbers = numbers
            if on_tensors:
                places = torch.tensor(on_tensors, dtype=torch.int64)
                factors = [[numbers[k][Param.RATE], 1.0] for k in on_tensors]
                self._rated = (
                    sent(places, self.device),
                    sent(torch.tensor(factors, dtype=self._params.dtype), self.device),
                )
        if on_tensors:
            self._write_rates(
                [(steps[k].rate, moves[self.rows[k].lead].group["lr"]) for k in on_tensors]
            )
        # A loss scaler keeps both on one device, also where weights lie on several.
        skip, grad_scale = (None if t is None else sent(t, self.device) for t in (skip, grad_scale))
        (prox_pass or self.prox_pass)(self._params, skip, grad_scale)

    def _write_rates(self, rates: Sequence[tuple[Any, Any]]) -> None:
        """Write rates that are tensors into the table, all at once.

        rates: the rate and the learning rate of each row that has them as tensors.
        """
        assert self._params is not None
        places, factors = self._rated
        values = torch.stack([torch.as_tensor(rate).reshape(()) for pair in rates for rate in pair])
        values = values.to(self._params.dtype)
        values = sent(values, self._params.device)
        columns = self._params[:, Param.RATE : Param.LR + 1]
        columns.index_copy_(0, places, values.view(-1, 2) * factors)


@dataclass(frozen=True, eq=False)
class StepPlan:
    """The launches of a step, and what is left to torch.

    chains: penalties on entries that are left. parts: those on groups.
    updated: parameters whose update is part of a launch.
    """

    launches: Sequence[Launch] = ()
    chains: Mapping[nn.Parameter, Chain] = field(default_factory=dict)
    parts: DividedParts = field(default_factory=DividedParts)
    updated: frozenset[nn.Parameter] = frozenset()


class PlanCache:
    """The last few plans, by what must be the same for them to serve again."""

    def __init__(self) -> None:
        self.kept = LastFew[tuple[StepPlan, Any]]()
        self.num_built = 0

    def get(self, key: Any, held: Any, build: Callable[[], StepPlan]) -> StepPlan:
        """Return the plan of that key; it is built where none is kept.

        held: whose ids are in the key, to be kept alive with it.
        """

        def built() -> tuple[StepPlan, Any]:
            self.num_built += 1
            return build(), held

        return self.kept(key, built)[0]


def signature(roster: Roster, step_size: StepSizeOf, update: str = "none") -> tuple[Any, ...]:
    """Return what must be the same for a plan to serve again: who moved, and memory.

    Addresses alone would not do, for memory is given to other tensors: plans hold theirs.
    """
    found = {step_size(move).second for move in roster.leads} | {FIRST_MOMENT_KEYS.get(update)}
    tensors = roster.tensors(sorted(key for key in found if key is not None))
    return roster.key, tuple([0 if t is None else t.data_ptr() for t in tensors])


def build_plan(
    chains: Mapping[nn.Parameter, Chain],
    parts: Sequence[Part],
    moves: Moves,
    step_size: StepSizeOf,
    support: Support,
    layered: bool = False,
    update: str = "none",
) -> StepPlan:
    """Divide the penalties of the moved parameters into launches, and what torch has to do.

    parts: on groups; those of which a parameter has not moved are left out.
    support: has the gates of zeros.
    layered: parts have strengths of their own.
    update: of the optimizer, which then is part of the launches wherever kernels can: of all
        parameters, penalised or not.
    """
    narrow = (part.trained() for part in parts)
    whole = [p for p in narrow if p is not None and all(q in moves for q in p.parameters)]
    local_parts, shared_parts = divide(whole)
    builder = _PlanBuilder(chains, local_parts, moves, step_size, support, layered)
    if update == "none":
        builder.add_entries()
        left = {p: chain for p, chain in chains.items() if p not in builder.done}
        builder.add_groups(without=left)
        return StepPlan(builder.launches, left, DividedParts(builder.parts, shared_parts))
    # Groups that are updated in one go with their prox; entries, and then the other groups.
    builder.add_groups(update)
    builder.add_entries(update)
    updated = frozenset(builder.done)
    left = {p: chain for p, chain in chains.items() if p not in updated}
    builder.add_groups(without=moves.keys() - updated)
    parts_left = DividedParts(builder.parts, shared_parts)
    return StepPlan(builder.launches, left, parts_left, updated)


class _PlanBuilder:
    """Launches so far, the parameters that they are done with, and the parts that are left."""

    def __init__(
        self,
        chains: Mapping[nn.Parameter, Chain],
        parts: Sequence[Part],
        moves: Moves,
        step_size: StepSizeOf,
        support: Support,
        layered: bool,
    ) -> None:
        self.chains, self.parts, self.moves, self.layered = chains, parts, moves, layered
        self.support = support
        self.sizes = {p: step_size(move) for p, move in moves.items()}
        self.launches: list[Launch] = []
        self.done: set[nn.Parameter] = set()

    def add_entries(self, update: str = "none") -> None:
        """Add launches over entries."""
        stacks: dict[Any, list[nn.Parameter]] = defaultdict(list)
        for p in self.moves:
            chain = self.chains.get(p, ())
            wanted = update != "none" or bool(chain)
            if wanted and p not in self.done and self._is_served(p, chain, update):
                formulas = tuple(k for part in chain if (k := part.penalty.kernel) is not None)
                gated = makes_zeros(chain) and p in self.support.entries
                stacks[formulas, gated, *self._kind(p)].append(p)
        for (formulas, gated, *_), parameters in stacks.items():
            table = self._table()
            rows = [table.place(p, self.chains.get(p, ()), 1) for p in parameters]
            gates = [local(self.support.entries[p]) for p in parameters if gated]
            self._add(parameters, rows, table, formulas, None, update, gates)

    def add_groups(self, update: str = "none", without: Iterable[nn.Parameter] = ()) -> None:
        """Add launches over groups; with an update, of those that fill single parameters.

        without: parameters of which torch has to do something before.
        """
        stacks: dict[Any, list[Part]] = defaultdict(list)
        rest = []
        for part in self.parts:
            held = [piece.parameter for piece in part.group_set.pieces]
            fits = all(p not in without and self._is_served(p, (part,), update) for p in held)
            if update != "none":
                whole = part.group_set.num_groups * part.group_set.size == local(held[0]).numel()
                fits = fits and len(held) == 1 and whole and held[0] not in self.chains
            if fits:
                gated = part.key in self.support.groups
                stacks[part.penalty.kernel, gated, *self._kind(held[0])].append(part)
            else:
                rest.append(part)
        for (formula, gated, *_), parts in stacks.items():
            table = self._table()
            geometry, held, rows = geometry_of(
                [part.group_set for part in parts],
                [_row_of(table, part) for part in parts],
            )
            gates = [self.support.groups[part.key] for part in parts if gated]
            if geometry is None or not self._add(
                held, rows, table, (formula,), geometry, update, gates
            ):
                rest += parts
        self.parts = rest

    def _table(self) -> ParamTable:
        return ParamTable(self.moves, self.sizes, self.layered)

    def _kind(self, p: nn.Parameter) -> tuple[Any, ...]:
        """Return what parameters in one launch share."""
        group = self.moves[p].group
        return p.dtype, local(p).device, self.sizes[p].second, group.get("momentum", 0.0) > 0

    def _is_served(self, p: nn.Parameter, chain: Chain, update: str) -> bool:
        """Say whether kernels know all of these penalties, and the memory is as they want it."""
        known = all(part.penalty.kernel is not None for part in chain)
        if len(chain) > MOST_FORMULAS or not known or not self.sizes[p].kernels_know:
            return False
        weight, state = local(p), self.moves[p].state
        if not is_dense(weight):
            return False
        keys = (self.sizes[p].second, FIRST_MOMENT_KEYS.get(update))
        kept = [state.get(key) for key in keys if key is not None]
        return all(is_like(local(t), weight) for t in kept if t is not None)

    def _add(
        self,
        parameters: Sequence[nn.Parameter],
        param_row: Sequence[int],
        table: ParamTable,
        formulas: tuple[Formula, ...],
        geometry: Tensor | None,
        update: str,
        gates: Sequence[Tensor],
    ) -> bool:
        """Add a launch over these parameters; say whether a kernel serves it."""
        weights = [local(p.detach()) for p in parameters]
        fresh: dict[nn.Parameter, Tensor] = {}
        lists = self._lists(parameters, table.rows[0].folds, update, fresh)
        args = KernelArgs(weights, param_row, geometry=geometry, gates=gates, **lists)
        metric = "scalar" if self.sizes[parameters[0]].second is None else "adaptive"
        prox_pass = prepare(args, formulas, metric, update)
        if prox_pass is None:
            return False
        where = weights[0].device
        self.launches.append(Launch(prox_pass, parameters, table.rows, where, fresh))
        self.done |= set(parameters)
        return True

    def _lists(
        self,
        parameters: Sequence[nn.Parameter],
        folds: bool,
        update: str,
        fresh: dict[nn.Parameter, Tensor],
    ) -> dict[str, list[Tensor]]:
        """Return what the optimizer keeps for the parameters; what is missing goes to `fresh`."""
        states = [self.moves[p].state for p in parameters]
        second, lists = self.sizes[parameters[0]].second, {}
        if second is not None:
            lists["exp_avg_sqs"] = [local(s[second]) for s in states]
            if update != "none" and second != "exp_avg_sq":
                lists["max_exp_avg_sqs"] = lists["exp_avg_sqs"]
                lists["exp_avg_sqs"] = [local(s["exp_avg_sq"]) for s in states]
        counts = [c for p in parameters if (c := self.sizes[p].count) is not None]
        if counts and not folds:
            lists["step_counts"] = counts
        if update == "none":
            return lists
        lists["grads"] = [
            g if is_like(g, w) else _laid_as(g, w)
            for p in parameters
            if p.grad is not None
            for g, w in [(local(p.grad), local(p.detach()))]
        ]
        if update != "sgd" or self.moves[parameters[0]].group["momentum"] > 0:
            kept = [s.get(FIRST_MOMENT_KEYS[update]) for s in states]
            for p, first in zip(parameters, kept, strict=True):
                if first is None:
                    fresh[p] = torch.zeros_like(p)
            lists["exp_avgs"] = [
                local(fresh[p] if first is None else first)
                for p, first in zip(parameters, kept, strict=True)
            ]
        return lists


def _laid_as(tensor: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)


def _row_of(table: ParamTable, part: Part) -> Callable[[nn.Parameter], int]:
    return lambda p: table.place(p, (part,), part.group_set.size)
