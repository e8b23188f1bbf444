"""What kernels take over from torch: which weights, in which passes, by which rules."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from regkit.groups import Bundle
from regkit.ops.gpu import launch as gpu_launch  # noqa: F401  registers its bodies
from regkit.ops.gpu import launch_tables as tables
from regkit.ops.kernel_args import MOST_FORMULAS, SIZES, KernelArgs, LaunchTable, Param
from regkit.ops.native import launch as native
from regkit.ops.prox_pass import ProxPass
from regkit.optim.batch import is_dense, local
from regkit.optim.group_layout import geometry_of
from regkit.optim.kernel_params import FormOf, Moves, Rules, Source, on_device, rule_of
from regkit.optim.plan import Chain
from regkit.penalties.penalty import WeightPenalty

Part = tuple[WeightPenalty, Bundle]

TABULATE: dict[str, Callable[..., LaunchTable | None]] = {
    "cpu": native.tabulate,
    "cuda": tables.tabulate,
}
REFRESH: dict[str, Callable[[LaunchTable, KernelArgs], LaunchTable | None]] = {
    "cuda": tables.refresh
}

# The state that an update reads besides the metric's, by update.
FIRSTS = {"sgd": "momentum_buffer", "adamw": "exp_avg"}


@dataclass(eq=False)
class Pass:
    """A sweep and where its rules come from.

    fresh: momentum buffers that it has begun, to become state of the optimizer.
    """

    sweep: ProxPass
    parameters: Sequence[nn.Parameter]
    sources: Sequence[Source]
    device: torch.device
    fresh: Mapping[nn.Parameter, Tensor]
    _rules: Tensor | None = field(default=None, init=False)
    _numbers: list[list[float]] = field(default_factory=list, init=False)

    def ready(self) -> bool:
        """Take the gradients of this step; say whether kernels can."""
        if self.sweep.update == "none":
            return True
        grads = [local(p.grad) for p in self.parameters if p.grad is not None]
        work = replace(self.sweep.work, grads=grads)
        if any(g.stride() != w.stride() for g, w in zip(grads, work.weights, strict=True)):
            return False
        assert self.sweep.table is not None
        table = REFRESH[self.device.type](self.sweep.table, work)
        if table is not None:
            self.sweep = replace(self.sweep, work=work, table=table)
        return table is not None

    def __call__(
        self,
        form: FormOf,
        momentum: Mapping[nn.Parameter, float],
        strength: float,
        skip: Tensor | None,
        scale: Tensor | None = None,
        tally: Tensor | None = None,
    ) -> None:
        """Run, at this strength.

        tally: `room` for what is counted by the way.
        """
        forms = [form(s.group, momentum.get(s.lead, 1.0)) for s in self.sources]
        numbers = [rule_of(s, f, strength) for s, f in zip(self.sources, forms, strict=True)]
        if self._rules is None or numbers != self._numbers:
            self._rules = on_device(self.device, numbers, self._rules)
            self._numbers = numbers
        for place, (source, f) in enumerate(zip(self.sources, forms, strict=True)):
            if isinstance(f.rate, Tensor):
                self._rules[place, Param.RATE] = f.rate * numbers[place][Param.RATE]
                self._rules[place, Param.LR] = source.group["lr"]
        self.sweep(self._rules, skip=skip, scale=scale, tally=tally)

    def room(self) -> Tensor:
        """Return room for non-zero entries, live groups and value, a row for each owner."""
        return torch.zeros((len(self.sweep.owners), 3), device=self.device)

    def num_entries(self) -> int:
        """Return how many entries it acts on; those of two groups count twice."""
        work = self.sweep.work
        if work.geometry is None:
            return sum(w.numel() for w in work.weights)
        return int(work.geometry[:, [int(axis) for axis in SIZES]].prod(1).sum())


@dataclass(frozen=True, eq=False)
class Passes:
    """The passes of a step, and the penalties that are left to torch.

    updated: parameters whose update is part of a pass; counts: their numbers of steps, to be
    raised before.
    """

    passes: Sequence[Pass]
    chains: Mapping[nn.Parameter, Chain]
    bundles: Sequence[Part]
    signature: tuple[Any, ...] = ()
    updated: frozenset[nn.Parameter] = frozenset()
    counts: Sequence[Tensor] = ()

    def cover(self, moves: Moves) -> bool:
        """Say whether they act on every entry of what moved, on each once and on nothing else."""
        held = [p for one in self.passes for p in set(one.parameters)]
        whole = sum(p.numel() for p in moves)
        return (
            len(held) == len(set(held))
            and set(held) == moves.keys()
            and sum(one.num_entries() for one in self.passes) == whole
            and not any(hasattr(p, "to_local") for p in moves)
        )


def signature(moves: Moves, form: FormOf, update: str = "none") -> tuple[Any, ...]:
    """Return what must be the same for passes to serve again: memory, and who moved.

    Numbers alone would not do, for memory is given to other tensors: passes hold theirs.
    """
    seconds = {id(m.group): form(m.group, m.momentum).second for m in moves.values()}
    first = FIRSTS.get(update)
    return tuple(
        (
            id(p),
            local(p).data_ptr(),
            _address(m.state, seconds[id(m.group)]),
            _address(m.state, first),
            id(m.group),
        )
        for p, m in moves.items()
    )


def plan(
    chains: Mapping[nn.Parameter, Chain],
    bundles: Sequence[Part],
    moves: Moves,
    form: FormOf,
    update: str = "none",
) -> Passes:
    """Divide the penalties of the moved parameters into passes, and what torch has to do.

    update: of the optimizer, which then is part of the passes wherever kernels can: of all
        parameters, penalised or not.
    """
    planner = _Planner(chains, bundles, moves, form)
    if update != "none":
        # Groups that are updated in one go with their prox; entries, and then the other groups.
        planner.groups(update)
        planner.entries(update)
        updated = frozenset(planner.done)
        counts = [c for one in planner.passes for c in one.sweep.work.counts]
        left = {p: c for p, c in chains.items() if p not in updated}
        planner.groups("none", without=moves.keys() - updated)
        key = signature(moves, form, update)
        return Passes(planner.passes, left, planner.bundles, key, updated, counts)
    planner.entries()
    left = {p: c for p, c in chains.items() if p not in planner.done}
    planner.groups(without=left)
    return Passes(planner.passes, left, planner.bundles, signature(moves, form))


@dataclass(eq=False)
class _Planner:
    """Passes so far, the parameters that they are done with, and the bundles that are left."""

    chains: Mapping[nn.Parameter, Chain]
    bundles: Sequence[Part]
    moves: Moves
    form: FormOf
    passes: list[Pass] = field(default_factory=list)
    done: set[nn.Parameter] = field(default_factory=set)

    def entries(self, update: str = "none") -> None:
        """Add passes over entries."""
        stacks: dict[Any, list[nn.Parameter]] = defaultdict(list)
        for p in self.moves:
            chain = self.chains.get(p, ())
            wanted = update != "none" or bool(chain)
            if wanted and p not in self.done and self._served(p, chain, update):
                formulas = tuple(str(penalty.formula) for penalty in chain)
                stacks[formulas, *self._kind(p)].append(p)
        for (formulas, *_), parameters in stacks.items():
            rules = Rules(self.moves, self.form)
            which = [rules.row(p, self.chains.get(p, ()), 1) for p in parameters]
            self._add(parameters, which, rules, formulas, None, update)

    def groups(self, update: str = "none", without: Iterable[nn.Parameter] = ()) -> None:
        """Add passes over groups; with an update, of those that fill single parameters.

        without: parameters of which torch has to do something before.
        """
        stacks: dict[Any, list[Part]] = defaultdict(list)
        rest = []
        for penalty, bundle in self.bundles:
            held = [piece.parameter for piece in bundle.pieces]
            fits = all(p in self.moves and p not in without for p in held) and all(
                self._served(p, (penalty,), update) for p in held
            )
            if update != "none":
                whole = bundle.num_groups * bundle.size == local(held[0]).numel()
                fits = fits and len(held) == 1 and whole and held[0] not in self.chains
            if fits:
                stacks[penalty.formula, *self._kind(held[0])].append((penalty, bundle))
            else:
                rest.append((penalty, bundle))
        for (formula, *_), parts in stacks.items():
            rules = Rules(self.moves, self.form)
            geometry, held, which = geometry_of(
                [b for _, b in parts],
                [_of(rules, penalty, bundle) for penalty, bundle in parts],
            )
            if geometry is None or not self._add(held, which, rules, (formula,), geometry, update):
                rest += parts
        self.bundles = rest

    def _kind(self, p: nn.Parameter) -> tuple[Any, ...]:
        """Return what parameters in one pass share."""
        move = self.moves[p]
        second = self.form(move.group, move.momentum).second
        return p.dtype, p.device, second, move.group.get("momentum", 0.0) > 0

    def _served(self, p: nn.Parameter, chain: Chain, update: str) -> bool:
        """Say whether kernels know all of these penalties, and the memory is as they want it."""
        if len(chain) > MOST_FORMULAS or any(penalty.formula is None for penalty in chain):
            return False
        weight, move = local(p), self.moves[p]
        if not is_dense(weight):
            return False
        keys = (self.form(move.group, move.momentum).second, FIRSTS.get(update))
        named = [move.state.get(key) for key in keys if key is not None]
        kept = [local(tensor) for tensor in named if tensor is not None]
        return all(t.stride() == weight.stride() for t in kept)

    def _add(
        self,
        parameters: Sequence[nn.Parameter],
        which: Sequence[int],
        rules: Rules,
        formulas: tuple[str, ...],
        geometry: Tensor | None,
        update: str,
    ) -> bool:
        """Add a pass over these parameters; say whether a kernel serves it."""
        weights = [local(p.detach()) for p in parameters]
        states = [self.moves[p].state for p in parameters]
        form = self.form(rules.sources[0].group, 1.0)
        lists: dict[str, list[Tensor]] = {}
        fresh: dict[nn.Parameter, Tensor] = {}
        if form.second is not None:
            lists["seconds"] = [local(s[form.second]) for s in states]
            if update != "none" and form.second != "exp_avg_sq":
                lists["maxes"] = lists["seconds"]
                lists["seconds"] = [local(s["exp_avg_sq"]) for s in states]
        if form.count is not None and rules.sources[0].count is None:
            lists["counts"] = [s[form.count] for s in states]
        if update != "none":
            lists["grads"] = [local(p.grad) for p in parameters if p.grad is not None]
            if update != "sgd" or rules.sources[0].group["momentum"] > 0:
                kept = [s.get(FIRSTS[update]) for s in states]
                fresh = {
                    p: torch.zeros_like(p)
                    for p, first in zip(parameters, kept, strict=True)
                    if first is None
                }
                lists["firsts"] = [
                    local(fresh[p] if first is None else first)
                    for p, first in zip(parameters, kept, strict=True)
                ]
        work = KernelArgs(weights, which, geometry=geometry, **lists)
        metric = "flat" if form.second is None else "root"
        device = weights[0].device
        tabulate = TABULATE.get(device.type)
        table = None if tabulate is None else tabulate(work, formulas, metric, update)
        if table is None:
            return False
        sweep = ProxPass(work, formulas, metric, update, table)
        self.passes.append(Pass(sweep, parameters, rules.sources, device, fresh))
        self.done |= set(parameters)
        return True


def _of(rules: Rules, penalty: WeightPenalty, bundle: Bundle) -> Callable[[nn.Parameter], int]:
    return lambda p: rules.row(p, (penalty,), bundle.size)


def _address(state: Mapping[str, Any], key: str | None) -> int:
    return 0 if key is None or state.get(key) is None else local(state[key]).data_ptr()
