"""The density that was asked for: which weights count for it, what it is, and why it is missed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from regkit.optim.density_control import GLOBAL
from regkit.optim.moves import MoveHistory
from regkit.optim.parts import Chain, Part
from regkit.optim.schedule import Schedule
from regkit.structure.distributed import all_reduce_counts, local, whole_rows


@dataclass(frozen=True)
class TargetResult:
    """A density that was asked for, and what there is.

    density: of the weights that the optimizer trains and a penalty chooses; with `layerwise`, of
        the layer that is furthest from the target.
    reason: why the target is not met; empty where it is.
    """

    target: float
    density: float
    reason: str = ""

    @property
    def is_met(self) -> bool:
        """Say whether the density is the target, to a twentieth of it, and 0.02 at most."""
        return abs(self.density - self.target) <= min(max(0.05 * self.target, 0.002), 0.02)


def missed(result: TargetResult) -> str:
    """Say that a target was missed, and why."""
    return (
        f"target_density={result.target:g} was asked for, and {result.density:.4g} of the weights "
        f"that are trained and penalised are not zero: {result.reason}. "
        "Regularizer.meet_target() sets to zero what is missing."
    )


class CountedWeights:
    """The weights of one optimizer that count for density.

    chains, parts: the penalties on entries and on groups.
    """

    def __init__(
        self,
        chains: Mapping[nn.Parameter, Chain],
        parts: Sequence[Part],
        schedule: Schedule,
        history: MoveHistory,
    ) -> None:
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
        trained, target = self._history.trained(), self._schedule.target_density
        return trained if target is None else [p for p in trained if p in self._zeroable]

    def factor_names(self) -> list[str]:
        """Return the names of what has a factor: the layers that are trained, or GLOBAL alone."""
        if not self._schedule.layerwise:
            return [GLOBAL]
        chained, grouped = self._layers()
        return [*chained, *(part.key for part in grouped)]

    def densities(self) -> dict[str, float]:
        """Return the share of non-zero entries, under GLOBAL; with `layerwise` by layer too.

        A collective where weights are sharded; waits for a GPU once (twice with groups by layer).
        """
        members = self.parameters()
        if not members:
            return {GLOBAL: 1.0}
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
        target, begin = self._schedule.target_density, self._schedule.closing[0]
        if target is None or not self.parameters():
            return None
        found = self.densities()
        if self._schedule.layerwise and len(found) > 1:
            del found[GLOBAL]
        worst = max(found.values(), key=lambda share: abs(share - target))
        if TargetResult(target, worst).is_met:
            return TargetResult(target, worst)
        early = (
            f"training ended at {progress:.0%} of its length, and the density is met from "
            f"{begin:.0%} on"
        )
        late = (
            "no strength leaves that many: groups are coarse, weights are equal, or zeros cannot "
            "come back"
        )
        return TargetResult(target, worst, early if progress <= begin else late)
