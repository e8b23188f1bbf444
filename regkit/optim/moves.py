"""What a step of an optimizer does to each parameter, and what the steps before it have done."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.optim.step_size import Group, Move, Moves, momentum_gain, momentum_gain_at_rest


class MoveHistory:
    """How often, and with which momentum, an optimizer has moved each parameter.

    members: parameters that are penalised.
    gains: momentum gains of the last moves. counts: numbers of moves.
    """

    def __init__(self, optimizer: Optimizer, members: Collection[nn.Parameter]) -> None:
        self.optimizer, self.members = optimizer, members
        self.gains: dict[nn.Parameter, float] = {}
        self.counts: Counter[nn.Parameter] = Counter()
        # Parameters whose momentum buffer has seen no gradient, not even one that was skipped.
        self._unbuffered: set[nn.Parameter] = set()

    def begin_step(self) -> None:
        """Note which momentum buffers are empty before the optimizer moves."""
        self._unbuffered |= {
            p
            for group in self.optimizer.param_groups
            if _has_momentum(group)
            for p in group["params"]
            if self.optimizer.state.get(p, {}).get("momentum_buffer") is None
        }

    def moves(self, before: Mapping[nn.Parameter, Tensor], every: bool = False) -> Moves:
        """Return what moves the penalised parameters, or every one, by this step.

        Frozen parameters, and those without a gradient, are not moved.

        before: weights before the step, where they were kept.
        """
        moves, states = {}, self.optimizer.state
        for group in self.optimizer.param_groups:
            heavy = _has_momentum(group)
            for p in group["params"]:
                mine = p in self.members
                if p.grad is None or p.numel() == 0 or not (every or mine):
                    continue
                if mine and not p.requires_grad:  # what is left of its gradient moves it no more
                    continue
                first = heavy and p in self._unbuffered
                gain = 1.0
                if heavy:
                    rest = momentum_gain_at_rest(group)
                    gain = momentum_gain(group, None if first else self.gains.get(p, rest))
                count = self.counts[p] + 1
                moves[p] = Move(p, group, states[p], gain, before.get(p), first, count)
        return moves

    def advance(self, moves: Moves) -> None:
        """Note that a step has been taken."""
        self.gains |= {p: move.gain for p, move in moves.items() if _has_momentum(move.group)}
        self.counts.update(moves.keys())
        self._unbuffered -= moves.keys()

    def is_at_rest(self) -> bool:
        """Say whether the momentum gains change no more, however many steps there will be."""
        return all(
            math.isclose(self.gains.get(p, 0.0), momentum_gain_at_rest(group), rel_tol=1e-9)
            for group in self.optimizer.param_groups
            if _has_momentum(group)
            for p in group["params"]
        )

    def trained(self) -> list[nn.Parameter]:
        """Return the penalised parameters that the optimizer trains.

        Before the first step: that it holds, and that are not frozen.
        """
        moved = self.counts or held_by(self.optimizer)
        return [p for p in self.members if p in moved and p.requires_grad]

    def paces(self, moves: Moves) -> tuple[int, ...]:
        """Number the parameters by how they have moved; those with one number share it all.

        Nothing is returned where all have moved together all along.
        """
        counts = self.counts
        even = len({move.gain for move in moves.values()}) < 2 and len(set(counts.values())) < 2
        if even and len(counts) in (0, len(moves)):
            return ()
        places: dict[Any, int] = {}
        return tuple(
            places.setdefault((move.gain, counts[p]), len(places)) for p, move in moves.items()
        )

    def state_dict(self, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
        """Return gains and counts by parameter name."""
        return {
            "gains": {names[p]: gain for p, gain in self.gains.items() if p in names},
            "counts": {names[p]: count for p, count in self.counts.items() if p in names},
        }

    def load_state_dict(
        self, saved: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Continue from a saved state, for these parameters by name."""
        gains, counts = (
            {parameters[name]: value for name, value in saved[key].items() if name in parameters}
            for key in ("gains", "counts")
        )
        self.gains, self.counts = gains, Counter(counts)


def held_by(optimizer: Optimizer) -> set[nn.Parameter]:
    """Return the parameters of all groups."""
    return {p for group in optimizer.param_groups for p in group["params"]}


def moved_only(moves: Moves) -> Moves:
    """Leave out what a learning rate of 0 has not moved."""
    return {p: m for p, m in moves.items() if isinstance(m.group["lr"], Tensor) or m.group["lr"]}


def _has_momentum(group: Group) -> bool:
    """Say whether the optimizer moves by a momentum buffer that torch does not correct."""
    return ("dampening" in group or "centered" in group) and group["momentum"] > 0
