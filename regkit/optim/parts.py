"""What a proximal step acts on: penalties, each on the groups of one group_set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from regkit.optim.density_control import Factors
from regkit.penalties.penalty import WeightPenalty
from regkit.structure.groups import GroupSet


@dataclass(frozen=True, eq=False)
class Part:
    """A weight penalty on the groups of one group set (of entries: on one parameter).

    key: the name under which its strength factor is found, "penalty/group set".
    """

    penalty: WeightPenalty
    group_set: GroupSet
    key: str

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return what it acts on, each parameter once."""
        return list(dict.fromkeys(piece.parameter for piece in self.group_set.pieces))

    @property
    def is_grouped(self) -> bool:
        """Say whether entries are penalised together."""
        return self.penalty.layout != "entries"

    def trained(self) -> "Part | None":
        """Return what is left of it without frozen parameters; None where all are frozen."""
        pieces = tuple(p for p in self.group_set.pieces if p.parameter.requires_grad)
        if len(pieces) == len(self.group_set.pieces):
            return self
        return replace(self, group_set=replace(self.group_set, pieces=pieces)) if pieces else None


Chain = tuple[Part, ...]


class Scale:
    """Give a part's penalty at its strength of a step; None where it is off.

    Constraints are never off.
    """

    def __init__(self, factors: Factors) -> None:
        self.factors = factors
        self._found: dict[tuple[WeightPenalty, float], WeightPenalty] = {}

    def __call__(self, part: Part) -> WeightPenalty | None:
        """Return the penalty of one part."""
        factor = self.factors.of(part.key)
        if factor is None:
            return part.penalty if part.penalty.constraint else None
        if self.factors.searched and not part.penalty.sparsifies:
            return part.penalty
        key = (part.penalty, factor)
        if key not in self._found:
            self._found[key] = part.penalty.scaled(factor)
        return self._found[key]


def active(
    chain: Sequence[Part], scale: Callable[[Part], WeightPenalty | None]
) -> tuple[WeightPenalty, ...]:
    """Return the penalties of a chain that act, at their strength."""
    return tuple(now for part in chain if (now := scale(part)) is not None)
