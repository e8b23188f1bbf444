"""What a step of an optimizer does to each parameter, and what the steps before it have done."""

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.optim.step_size import (
    Group,
    Move,
    Moves,
    Pace,
    momentum_gain,
    momentum_gain_at_rest,
)
from regkit.structure.distributed import local

# What is kept of the last few times: gradients that come and go cost no looking anew.
NUM_KEPT = 4
Value = TypeVar("Value")


class LastFew(Generic[Value]):
    """The last few values, by long keys that mostly stay as they are."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, Value] = OrderedDict()
        self._last: tuple[Any, Value] | None = None

    def __call__(self, key: Any, make: Callable[[], Value]) -> Value:
        """Return the value of a key; it is made where none is kept."""
        if self._last is None or self._last[0] != key:
            value = self._kept.pop(key) if key in self._kept else make()
            self._kept[key] = value
            self._last = key, value
            if len(self._kept) > NUM_KEPT:
                self._kept.popitem(last=False)
        return self._last[1]

    def newest(self) -> list[Value]:
        """Return them in the order in which they were asked for."""
        return list(self._kept.values())


@dataclass(eq=False)
class Roster:
    """Who moves at a step; the same one is used again for as long as it stays so.

    key: what it depends on, mostly ids of what is in `held`.
    moves: of all that is moved. penalised: of those among them that are.
    paces: of them, each with its group. leads: a move of each group, penalised if one is.
    has_shards: some are DTensors.
    """

    key: tuple[Any, ...]
    held: Any
    moves: Moves
    penalised: Moves
    paces: Sequence[tuple[Pace, Group]]
    leads: Sequence[Move]
    has_shards: bool
    _moved: dict[tuple[int, ...], "Roster"] = field(default_factory=dict, init=False)

    def moved(self) -> "Roster":
        """Return it with penalised parameters only, without those that a rate of 0 leaves alone."""
        still = tuple(
            id(lead.group)
            for lead in self.leads
            if not isinstance(lead.group["lr"], Tensor) and not lead.group["lr"]
        )
        if still not in self._moved:
            moves = {p: m for p, m in self.penalised.items() if id(m.group) not in still}
            leads = [lead for lead in self.leads if lead.parameter in moves]
            own = (self.paces, leads, self.has_shards)
            self._moved[still] = Roster((still, *self.key), self.held, moves, moves, *own)
        return self._moved[still]

    def tensors(self, keys: Iterable[str]) -> list[Tensor | None]:
        """Return the weights, and what the optimizer keeps by these keys; this rank's own."""
        moves = self.moves.values()
        found: list[Tensor | None] = [move.parameter for move in moves]
        for key in keys:
            found += [move.state.get(key) for move in moves]
        return [None if t is None else local(t) for t in found] if self.has_shards else found


class MoveHistory:
    """How often, and with which momentum, an optimizer has moved each parameter.

    members: parameters that are penalised.
    """

    def __init__(self, optimizer: Optimizer, members: Collection[nn.Parameter]) -> None:
        self.optimizer, self.members = optimizer, members
        self._paces: dict[nn.Parameter, Pace] = {}
        self._rosters = LastFew[Roster]()
        # Changes whenever parameters no longer share a pace.
        self._partition = 0
        # Parameters whose momentum buffer has seen no gradient, not even one that was skipped.
        self._unbuffered: set[nn.Parameter] = set()

    def begin_step(self) -> None:
        """Note which momentum buffers are empty before the optimizer moves."""
        states = self.optimizer.state
        for group in filter(_has_momentum, self.optimizer.param_groups):
            for p, state in zip(group["params"], map(states.get, group["params"]), strict=True):
                if state is None or state.get("momentum_buffer") is None:
                    self._unbuffered.add(p)

    def roster(self, before: Mapping[nn.Parameter, Tensor], every: bool = False) -> Roster:
        """Return what moves the penalised parameters, or every one, by this step.

        Frozen parameters, and those without a gradient, are not moved.

        before: weights before the step, where they were kept.
        """
        groups, states = self.optimizer.param_groups, self.optimizer.state
        params = [p for group in groups for p in group["params"]]
        moving = [p.grad is not None for p in params]
        kept = list(map(states.get, params))
        key = (
            every,
            self._partition,
            tuple(map(id, groups)),
            tuple(len(group["params"]) for group in groups),
            tuple(map(id, params)),
            tuple(map(id, kept)),
            tuple(moving),
            tuple(map(_is_trained, params)),
        )
        # A memory of the step itself, and buffers that it fills, are for this step alone.
        look = partial(self._look, before, every, key, (groups, params, kept))
        roster = look() if before or self._unbuffered else self._rosters(key, look)
        for pace, group in roster.paces:
            pace.start(self._gain(pace, group), pace.is_first and bool(self._unbuffered))
        return roster

    def _gain(self, pace: Pace, group: Group) -> float:
        if not _has_momentum(group):
            return 1.0
        if pace.is_first and self._unbuffered:
            return momentum_gain(group, None)
        rest = momentum_gain_at_rest(group)
        return momentum_gain(group, rest if pace.last_gain is None else pace.last_gain)

    def _look(
        self,
        before: Mapping[nn.Parameter, Tensor],
        every: bool,
        key: tuple[Any, ...],
        held: Any,
    ) -> Roster:
        """Look at every parameter, and see who has always moved together."""
        together: dict[Any, list[nn.Parameter]] = defaultdict(list)
        groups: dict[nn.Parameter, Group] = {}
        for group in self.optimizer.param_groups:
            heavy = _has_momentum(group)
            for p in group["params"]:
                mine = p in self.members
                if p.grad is None or p.numel() == 0 or not (every or mine):
                    continue
                if mine and not p.requires_grad:  # what is left of its gradient moves it no more
                    continue
                groups[p] = group
                first = heavy and p in self._unbuffered
                together[self._paces.get(p), id(group), first].append(p)
        paces, sizes = [], Counter(self._paces.values())
        for (old, _, first), some in together.items():
            alone = old is not None and sizes[old] == len(some)
            pace = old if old is not None and alone else self._new_pace(old, some)
            pace.is_first = first
            paces.append((pace, groups[some[0]]))
        states = self.optimizer.state
        moves = {
            p: Move(p, group, states[p], self._paces[p], before.get(p))
            for p, group in groups.items()
        }
        penalised = {p: move for p, move in moves.items() if p in self.members}
        leads = {id(move.group): move for some in (moves, penalised) for move in some.values()}
        has_shards = any(hasattr(p, "placements") for p in moves)
        key = (every, self._partition, *key[2:])
        return Roster(key, held, moves, penalised, paces, list(leads.values()), has_shards)

    def _new_pace(self, old: Pace | None, some: Sequence[nn.Parameter]) -> Pace:
        """Give a pace of their own to parameters that go on without others, or begin."""
        last = (None, 0) if old is None else (old.last_gain, old.num_moves)
        pace = Pace(last_gain=last[0], num_moves=last[1])
        self._paces |= dict.fromkeys(some, pace)
        self._partition += 1
        return pace

    def advance(self, roster: Roster) -> None:
        """Note that a step has been taken."""
        for pace, group in roster.paces:
            pace.finish(_has_momentum(group))
        if self._unbuffered:
            self._unbuffered -= roster.moves.keys()

    def is_at_rest(self) -> bool:
        """Say whether the momentum gains change no more, however many steps there will be."""
        return all(
            math.isclose(self._last_gain(p), momentum_gain_at_rest(group), rel_tol=1e-9)
            for group in self.optimizer.param_groups
            if _has_momentum(group)
            for p in group["params"]
        )

    def _last_gain(self, p: nn.Parameter) -> float:
        pace = self._paces.get(p)
        return 0.0 if pace is None or pace.last_gain is None else pace.last_gain

    def trained(self) -> list[nn.Parameter]:
        """Return the penalised parameters that the optimizer trains.

        Before the first step: that it holds, and that are not frozen.
        """
        moved = {p for p, pace in self._paces.items() if pace.num_moves} or held_by(self.optimizer)
        return [p for p in self.members if p in moved and p.requires_grad]

    def state_dict(self, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
        """Return gains and counts by parameter name."""
        paces = {names[p]: pace for p, pace in self._paces.items() if p in names and pace.num_moves}
        return {
            "gains": {n: pace.last_gain for n, pace in paces.items() if pace.last_gain is not None},
            "counts": {name: pace.num_moves for name, pace in paces.items()},
        }

    def load_state_dict(
        self, saved: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Continue from a saved state, for these parameters by name."""
        gains, counts = saved["gains"], Counter(saved["counts"])
        known: dict[Any, Pace] = {}
        self._paces = {}
        self._partition += 1
        for name, p in parameters.items():
            if name in gains or name in counts:
                last = gains.get(name), counts[name]
                pace = known.setdefault(last, Pace(last_gain=last[0], num_moves=last[1]))
                self._paces[p] = pace


def held_by(optimizer: Optimizer) -> set[nn.Parameter]:
    """Return the parameters of all groups."""
    return {p for group in optimizer.param_groups for p in group["params"]}


_is_trained = attrgetter("requires_grad")


def _has_momentum(group: Group) -> bool:
    """Say whether the optimizer moves by a momentum buffer that torch does not correct."""
    return ("dampening" in group or "centered" in group) and group["momentum"] > 0
