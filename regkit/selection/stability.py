"""Which groups survive in nearly every fold, and how many of them may be there by chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from regkit.errors import InputError


@dataclass(frozen=True, eq=False)
class Stability:
    """In which folds, or subsamples, which groups survive at which strength.

    lams: the strengths.
    alive: by layer, (folds, strengths, groups).
    Raises: InputError when there is nothing, or when the layers do not agree.
    Source: Meinshausen and Buehlmann, JRSS B 72 (2010), 417-473.
    """

    lams: Sequence[float | int]
    alive: Mapping[str, Bool[np.ndarray, "folds strengths groups"]]

    def __post_init__(self) -> None:
        shapes = {name: a.shape[:2] for name, a in self.alive.items()}
        if not shapes or 0 in next(iter(shapes.values())):
            raise InputError("Stability got no layers, folds or strengths; give one of each.")
        for name, (folds, strengths) in shapes.items():
            first = next(iter(shapes.values()))
            if strengths != len(self.lams) or folds != first[0]:
                raise InputError(
                    f"Stability got {name!r} with {folds} folds and {strengths} strengths, beside "
                    f"{first[0]} folds and {len(self.lams)} lams; give the same for all layers."
                )

    @property
    def num_folds(self) -> int:
        """Number of folds or subsamples."""
        return len(next(iter(self.alive.values())))

    @property
    def num_groups(self) -> int:
        """Number of groups of all layers."""
        return sum(a.shape[2] for a in self.alive.values())

    def shares(self) -> dict[str, np.ndarray]:
        """Return by layer (strengths, groups): the share of folds in which a group survives."""
        return {name: a.mean(0) for name, a in self.alive.items()}

    def selected(
        self, threshold: float | int = 0.9, at: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """Return by layer which groups survive in this share of folds at some strength.

        threshold: in (0, 1]; 0.6 to 0.9 are usual.
        at: places of the strengths that count; default: all.
        """
        _check_threshold(threshold, 0.0)
        places = self._places(at)
        # Shares are counts over num_folds: no rounding may decide at the threshold itself.
        least = threshold * self.num_folds - 1e-9
        return {name: (a[:, places].sum(0) >= least).any(0) for name, a in self.alive.items()}

    def false_bound(self, threshold: float | int = 0.9, at: Sequence[int] | None = None) -> float:
        """Return a bound on the expected number of selected groups that do not matter.

        E[V] <= q^2 / ((2 threshold - 1) p),   q: groups that survive a fold at any of the strengths
        on average, p: all groups.

        It holds for random subsamples of half the data, if groups that do not matter are all as
        likely to survive, and no likelier than those that do. Folds of a cross-validation overlap
        more than such subsamples: there it is a guide.

        threshold: in (0.5, 1].
        at: places of the strengths that count; default: all.
        Source: Meinshausen and Buehlmann (2010), theorem 1, equation 9.
        """
        _check_threshold(threshold, 0.5)
        places = self._places(at)
        survivors = [a[:, places].any(1).sum(1) for a in self.alive.values()]
        num_survivors = float(np.sum(survivors, axis=0).mean())
        return num_survivors**2 / ((2 * threshold - 1) * self.num_groups)

    def _places(self, at: Sequence[int] | None) -> list[int]:
        places = list(range(len(self.lams))) if at is None else list(at)
        if not places or any(not 0 <= place < len(self.lams) for place in places):
            raise InputError(
                f"Stability got at={places}; give places of strengths, 0 to {len(self.lams) - 1}."
            )
        return places


def _check_threshold(threshold: float | int, low: float) -> None:
    if not low < threshold <= 1:
        raise InputError(
            f"Stability got threshold={threshold!r}; give a share of folds above {low:g}, up to 1."
        )
