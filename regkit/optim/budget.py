"""A budget of FLOPs, parameters or time, and what of it the groups that are not zero take."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regkit.pruning.width_cost import WidthCost


@dataclass(frozen=True)
class Budget:
    """What a net may cost, where channels that are all zero are cut out.

    share: of what the whole net costs, that was asked for.
    sets: the name of the set of channels that a part of a penalty makes zero, by `Part.key`.
    lam_scale: what `lam` is multiplied by, by the same key; 1 where none is given.
    """

    share: float
    cost: WidthCost
    sets: Mapping[str, str]
    lam_scale: Mapping[str, float]

    def one_channel(self, alive: Mapping[str, int]) -> float:
        """Return the share that one channel more, of the dearest set, costs beside so many.

        No budget is met more closely. Of widths that are multiples, so many channels.
        """
        step, used = self.cost.multiple_of, self.used(alive)
        more = (self.used({**alive, name: alive[name] + step}) - used for name in alive)
        fewer = (used - self.used({**alive, name: alive[name] - step}) for name in alive)
        return max(*more, *fewer)

    def even_shares(self, keys: Iterable[str]) -> dict[str, float]:
        """Return the share of channels that each part keeps when all keep the same, by key."""
        keys = list(keys)
        widths = self.cost.even_widths(self.share, [self.sets[key] for key in keys])
        counts = self._counts()
        return {key: widths[self.sets[key]] / counts[self.sets[key]] for key in keys}

    def alive(self, rows: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
        """Count the channels of each set that no penalty has made zero; waits for a GPU once.

        rows: groups (groups, size) by the key of their part.
        """
        masks: dict[str, Tensor] = {}
        for key, seen in rows:
            mask = (seen != 0).any(1)
            name = self.sets[key]
            masks[name] = masks[name] & mask if name in masks else mask
        counts = torch.stack([mask.sum() for mask in masks.values()]).tolist() if masks else []
        return dict(zip(masks, counts, strict=True))

    def used(self, alive: Mapping[str, int]) -> float:
        """Return the share that a net costs with so many channels of each set."""
        return self.cost.share(alive)

    def shares(self, alive: Mapping[str, int]) -> dict[str, float]:
        """Return the share of its channels that each part keeps, by key."""
        counts = self._counts()
        named = {key: name for key, name in self.sets.items() if name in alive}
        return {key: alive[name] / counts[name] for key, name in named.items()}

    def _counts(self) -> dict[str, int]:
        units = zip(self.cost.units, self.cost.channels, strict=True)
        return {name: count for unit, count in units for name in unit}
