"""A step at the strengths that leave the density that is asked for: they are searched for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from regkit.optim.density_control import (
    FIRST_TRIALS,
    GLOBAL,
    Densities,
    DensityController,
    Factors,
    solve,
)
from regkit.optim.parts import Part
from regkit.optim.schedule import Schedule
from regkit.optim.step_context import StepContext
from regkit.optim.step_size import Moves
from regkit.optim.support import Support
from regkit.optim.target import CountedWeights

OfFactors = Callable[[Factors], None]


@dataclass(frozen=True, eq=False)
class DensityStep:
    """Takes the prox again and again from where the optimizer moved to, at other strengths.

    control: proposes them, and remembers the one that was found.
    """

    control: DensityController
    schedule: Schedule
    counted: CountedWeights
    support: Support

    def take(
        self, context: StepContext, moves: Moves, apply: OfFactors, open_gates: OfFactors
    ) -> None:
        """Apply the penalties at the strengths that the density asks for.

        apply: takes the prox at given factors. open_gates: says which zeros may wake at them.
        """
        control, names = self.control, self.counted.factor_names()
        assert context.bounds is not None, "a step that is controlled has bounds"
        # What the first step has not moved counts no more.
        bounds = {name: context.bounds[name] for name in names if name in context.bounds}
        start = {p: p.detach().clone() for p in moves}
        gates = self.support.snapshot()
        attempt = partial(self._attempt, context, start, gates, apply, open_gates)
        if control.is_new():
            targets = self.counted.targets()
            targets = {name: targets.get(name, targets[GLOBAL]) for name in names}
            wanted = {name: (share, (1 + share) / 2) for name, share in targets.items()}
            critical = solve(wanted, control.named(names), attempt, FIRST_TRIALS)
            # Where nobody knows yet how long training is, it is taken to be long.
            num_steps = self.schedule.ramp_until / context.stride if context.stride else 1e3
            control.begin(context.progress, critical, num_steps)
        found = solve(bounds, control.named(names), attempt)
        control.adopt(found, closing=context.progress > self.schedule.closing[0])

    def _attempt(
        self,
        context: StepContext,
        start: Mapping[nn.Parameter, Tensor],
        gates: Sequence[Tensor],
        apply: OfFactors,
        open_gates: OfFactors,
        named: Mapping[str, float],
    ) -> Densities:
        """Take the step at given factors, from where the optimizer moved to; say what it leaves.

        start: the weights there. gates: of before the step. named: factors by name.
        """
        for p, values in start.items():
            p.copy_(values)
        self.support.restore(gates)
        factors = self.control.factors
        if self.schedule.layerwise:
            layers = {**(factors.layers or {}), **named}
            factors = Factors(factors.common, layers, searched=True)
        else:
            factors = Factors(named[GLOBAL], searched=True)
        if context.progress > self.schedule.closing[0] and not context.keeps_zeros:
            # Which zeros may wake depends on the strength, and now each has to be met exactly.
            open_gates(factors)
        apply(factors)
        alive = self.counted.alive()
        if dead := self.counted.dead_parts(alive):
            self._keep_one_group(dead, start)
            alive = self.counted.alive()
        return self.counted.densities(alive)

    def _keep_one_group(self, parts: Sequence[Part], start: Mapping[nn.Parameter, Tensor]) -> None:
        """Put back the largest group of each part, as it was before the prox.

        Without its last channel a net hands nothing on, and a cut one keeps it anyhow.
        """
        for part in parts:
            if all(p in start for p in part.parameters):
                before, rows = part.group_set.rows(start.__getitem__), part.group_set.rows().clone()
                largest = torch.linalg.vector_norm(before, dim=1).argmax()
                rows[largest] = before[largest]
                part.group_set.write(rows)
                self.support.record_outside_writes(part.parameters)
