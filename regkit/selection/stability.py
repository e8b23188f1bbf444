"""Which groups survive in nearly every fold, and how many of them may be there by chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from regkit.errors import InputError

# Groups that a panel is as high as, at least and at most, for layers of 3 and of 2048 to be seen.
PANEL_ROWS = (10, 60)
HEIGHT_IN = (3.0, 11.0)  # of the figure; the page of a paper
LABEL_IN = 0.32  # of a layer's two lines, for which a figure of many layers grows longer
WIDTH_IN = 6.4


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


def draw(stability: Stability, chosen: float | int | None = None) -> Figure:
    """Draw the share of folds in which each group survives against the strength, layer by layer.

    A line of the picture is a group, those that survive longest on top.

    chosen: a strength that is marked, one of `stability.lams`.
    Raises: InputError when it is none of them.
    """
    if chosen is not None and chosen not in stability.lams:
        raise InputError(
            f"draw got chosen={chosen:g}; it is one of "
            f"{', '.join(f'{lam:g}' for lam in stability.lams)}."
        )
    shares = stability.shares()
    order = np.argsort(np.asarray(stability.lams))
    lams = [stability.lams[place] for place in order]
    heights = [int(np.clip(s.shape[1], *PANEL_ROWS)) for s in shares.values()]
    height = float(np.clip(0.045 * sum(heights) + 0.25 * len(heights) + 1.2, *HEIGHT_IN))
    height = max(height, LABEL_IN * len(heights) + 1.2)
    figure = Figure((WIDTH_IN, height), layout="compressed")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shares), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    image = None
    for panel, (name, share) in zip(axes, shares.items(), strict=True):
        seen = share[order].T
        seen = seen[np.argsort(-seen.sum(1), kind="stable")]
        image = panel.imshow(
            seen, aspect="auto", vmin=0, vmax=1, cmap="cividis", interpolation="nearest"
        )
        panel.set_yticks([])
        panel.set_ylabel(
            f"{name}\n{share.shape[1]} groups", rotation=0, ha="right", va="center", fontsize=8
        )
        if chosen is not None:
            panel.axvline(lams.index(chosen), color="#d55e00", linewidth=1.5, linestyle="--")
    every = max(len(lams) // 10, 1)
    axes[-1].set_xticks(
        range(0, len(lams), every), [_short(lam) for lam in lams[::every]], rotation=45, ha="right"
    )
    axes[-1].set_xlabel("strength lam" + ("" if chosen is None else f" (dashed: {_short(chosen)})"))
    assert image is not None
    figure.colorbar(
        image,
        ax=list(axes),
        aspect=4 * height,
        label=f"share of {stability.num_folds} folds where it survives",
    )
    return figure


def _short(lam: float | int) -> str:
    """Write a strength as the names of runs do: 1e-4."""
    return f"{lam:g}" if lam >= 0.01 else f"{lam:.1e}".replace(".0e", "e").replace("e-0", "e-")


def _check_threshold(threshold: float | int, low: float) -> None:
    if not low < threshold <= 1:
        raise InputError(
            f"Stability got threshold={threshold!r}; give a share of folds above {low:g}, up to 1."
        )
