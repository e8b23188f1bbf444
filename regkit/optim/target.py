"""The target that was asked for: what counts for it, what is there, and why it is missed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from regkit.optim.budget import Budget
from regkit.optim.density_control import GLOBAL
from regkit.optim.moves import MoveHistory
from regkit.optim.parts import Chain, Part
from regkit.optim.schedule import UNITS, Schedule, Target
from regkit.structure.distributed import all_reduce_counts, local, whole_rows


@dataclass(frozen=True)
class TargetResult:
    """A target that was asked for, and what there is.

    target: as a share of the whole.
    reached: density of the weights that the optimizer trains and a penalty chooses; with
        `layerwise`, of the layer that is furthest from the target. Of a budget, what the net takes
        without its dead channels, as a share of the whole net.
    reason: why the target is not met; empty where it is.
    kind: of the target, a key of `regkit.optim.schedule.UNITS`.
    whole: FLOPs, parameters or seconds of the whole net, of a budget.
    slack: share that the dearest channel takes, and what a measured latency is uncertain by.
    """

    target: float
    reached: float
    reason: str = ""
    kind: str = "density"
    whole: float = 1.0
    slack: float = 0.0

    @property
    def is_met(self) -> bool:
        """Say whether the target is reached to a twentieth, 0.02 at most, or to the slack."""
        allowed = min(max(0.05 * self.target, 0.002), 0.02)
        return abs(self.reached - self.target) <= max(allowed, self.slack)

    def __str__(self) -> str:
        words, unit = UNITS[self.kind]
        asked, reached = f"{self.target:.4g} {words}", f"{self.reached:.4g}"
        if self.kind != "density":
            asked = f"{self.target * self.whole / unit:.4g} {words} ({self.target:.3g})"
            reached = f"{self.reached * self.whole / unit:.4g} ({self.reached:.3g})"
        return f"target_{self.kind}: asked {asked}, reached {reached}"


def missed(result: TargetResult) -> str:
    """Say that a target was missed, and why."""
    if result.kind == "density":
        asked = f"target_density={result.target:g} was asked for, and {result.reached:.4g}"
        told = f"{asked} of the weights that are trained and penalised are not zero"
    else:
        told = str(result)
    return f"{told}: {result.reason}. Regularizer.meet_target() sets to zero what is missing."


class CountedWeights:
    """The weights of one optimizer that count for a density or a budget.

    chains, parts: the penalties on entries and on groups.
    budget: that the schedule asks for, if it is none of density.
    """

    def __init__(
        self,
        chains: Mapping[nn.Parameter, Chain],
        parts: Sequence[Part],
        schedule: Schedule,
        history: MoveHistory,
        budget: Budget | None = None,
    ) -> None:
        self._budget = budget
        self._schedule, self._history = schedule, history
        self._chains = {
            p: [part for part in chain if part.penalty.sparsifies] for p, chain in chains.items()
        }
        self._parts = [part for part in parts if part.penalty.sparsifies]
        every = [*self._parts, *(part for chain in self._chains.values() for part in chain)]
        self._zeroable = {p for part in every for p in part.parameters}

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that count: penalised, and trained by this optimizer.

        Of those, where a density is aimed at, what a penalty can make zero.
        """
        trained, target = self._history.trained(), self._schedule.target
        return trained if target is None else [p for p in trained if p in self._zeroable]

    def factor_names(self) -> list[str]:
        """Return the names of what has a factor: the layers that are trained, or GLOBAL alone."""
        if not self._schedule.layerwise:
            return [GLOBAL]
        chained, grouped = self._layers()
        return [*chained, *(part.key for part in grouped)]

    def targets(self) -> dict[str, float]:
        """Return what `densities` are to come down to, by name; what is not named, to GLOBAL's.

        Of a budget with `layerwise`: shares of channels that cost as much as it allows.
        """
        if self._budget is None:
            return {GLOBAL: self._schedule.target_density or 0.0}
        if not self._schedule.layerwise:
            return {GLOBAL: self._budget.share}
        shares = self._budget.even_shares(self._budget.sets)
        return {GLOBAL: self._mean(shares), **shares}

    def alive(self) -> dict[str, int]:
        """Count the channels of each set of a budget that are not zero; empty without a budget."""
        if self._budget is None:
            return {}
        return self._budget.alive(whole_rows([(p.key, p.group_set) for p in self._budgeted()]))

    def dead_parts(self, alive: Mapping[str, int]) -> list[Part]:
        """Return the parts of a budget that have no channel left."""
        sets = {} if self._budget is None else self._budget.sets
        return [part for part in self._budgeted() if alive[sets[part.key]] == 0]

    def _budgeted(self) -> list[Part]:
        sets = {} if self._budget is None else self._budget.sets
        return [part for part in self._parts if part.key in sets]

    def densities(self, channels: Mapping[str, int] | None = None) -> dict[str, float]:
        """Return the share of non-zero entries, under GLOBAL; with `layerwise` by layer too.

        Of a budget: the share of it that is used; with `layerwise`, shares of channels.
        A collective where weights are sharded; waits for a GPU once (twice with groups by layer).

        channels: of each set that are not zero, where `alive` has counted them already.
        """
        members = self.parameters()
        if not members:
            return {GLOBAL: 1.0}
        if self._budget is not None:
            channels = self.alive() if channels is None else channels
            if not self._schedule.layerwise:
                return {GLOBAL: self._budget.used(channels)}
            shares = self._budget.shares(channels)
            return {GLOBAL: self._mean(shares), **shares}
        counts = torch.stack([torch.count_nonzero(local(p.detach())) for p in members])
        alive = dict(zip(members, all_reduce_counts(counts, members).tolist(), strict=True))
        found = {GLOBAL: sum(alive.values()) / sum(p.numel() for p in members)}
        if self._schedule.layerwise:
            chained, grouped = self._layers()
            found |= {key: alive[p] / p.numel() for key, p in chained.items()}
            seen = whole_rows([(part.key, part.group_set) for part in grouped])
            shares = {key: (rows != 0).float().mean() for key, rows in seen}
            if shares:
                found |= dict(zip(shares, torch.stack(list(shares.values())).tolist(), strict=True))
        return found

    def _mean(self, shares: Mapping[str, float]) -> float:
        """Return the mean of shares of channels, by key, over all channels."""
        counts = {part.key: part.group_set.num_groups for part in self._parts}
        return sum(shares[k] * counts[k] for k in shares) / sum(counts[k] for k in shares)

    def _layers(self) -> tuple[dict[str, nn.Parameter], list[Part]]:
        """Return what counts by penalty: parameters by the key of it, and groups."""
        members = self.parameters()
        chained = {part.key: p for p in members for part in self._chains.get(p, ())}
        trained = (part.trained() for part in self._parts)
        grouped = [p for p in trained if p is not None and set(members).issuperset(p.parameters)]
        return chained, grouped

    def result(self, progress: float) -> TargetResult | None:
        """Compare the density with the target; None where there is none, or nothing to count.

        progress: of training, at its end.
        """
        target, begin = self._schedule.target, self._schedule.closing[0]
        if target is None or not self.parameters():
            return None
        result = self._compared(target)
        if result.is_met:
            return result
        early = (
            f"training ended at {progress:.0%} of its length, and the target is met from "
            f"{begin:.0%} on"
        )
        late = (
            "no strength leaves that many: groups are coarse, weights are equal, or zeros cannot "
            "come back"
        )
        return replace(result, reason=early if progress <= begin else late)

    def _compared(self, target: Target) -> TargetResult:
        if self._budget is not None:
            alive, cost = self.alive(), self._budget.cost
            used, slack = self._budget.used(alive), self._budget.one_channel(alive) + cost.error
            share = self._budget.share
            return TargetResult(share, used, kind=target.kind, whole=cost.whole, slack=slack)
        found = self.densities()
        if self._schedule.layerwise and len(found) > 1:
            del found[GLOBAL]
        worst = max(found.values(), key=lambda share: abs(share - target.value))
        return TargetResult(target.value, worst)
