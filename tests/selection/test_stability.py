"""Which groups survive in nearly all folds, and how many of them by chance."""

import numpy as np
import pytest

from regkit import InputError
from regkit.selection.stability import Stability
from regkit.sweeps.cross_validation import draw

RNG = np.random.default_rng(0)
LAMS = [1e-1, 1e-2, 1e-3]


def made(num_folds: int = 10, sizes: tuple[int, ...] = (6, 30)) -> Stability:
    """Groups die the earlier, the later they come; each fold at its own strength."""
    alive = {}
    for layer, size in enumerate(sizes):
        deaths = np.linspace(0, 4, size) + RNG.normal(0, 0.5, (num_folds, 1, size))
        alive[f"layer{layer}.weight"] = deaths < np.arange(3)[None, :, None] + 0.5
    return Stability(LAMS, alive)


def test_shares_and_selection_are_counts():
    stability = made()
    for name, alive in stability.alive.items():
        for k in range(3):
            for g in range(alive.shape[2]):
                share = sum(alive[fold, k, g] for fold in range(10)) / 10
                assert stability.shares()[name][k, g] == pytest.approx(share)
                assert stability.selected(0.7, at=[k])[name][g] == (share > 0.7 - 1e-6)
        anywhere = np.stack([stability.selected(0.7, at=[k])[name] for k in range(3)]).any(0)
        assert (stability.selected(0.7)[name] == anywhere).all()


def test_the_threshold_itself_is_enough():
    alive = np.zeros((10, 1, 1), dtype=bool)
    alive[:7] = True
    stability = Stability([1.0], {"w": alive})
    for threshold in (0.1, 0.7):
        assert stability.selected(threshold)["w"].all()
    assert not stability.selected(0.71)["w"].any()


def test_the_bound_on_false_selections_is_theirs():
    alive = np.zeros((4, 2, 100), dtype=bool)
    alive[:, 0, :6] = True
    alive[:2, 1, 4:14] = True  # the union of both strengths: 14 in two folds, 6 in the others
    stability = Stability([0.1, 0.01], {"a": alive[:, :, :40], "b": alive[:, :, 40:]})
    assert stability.false_bound(0.9) == pytest.approx(10**2 / (0.8 * 100))
    assert stability.false_bound(0.75, at=[0]) == pytest.approx(6**2 / (0.5 * 100))


def test_the_bound_holds_where_nothing_matters():
    """Subsamples that keep q of p groups by chance: few are kept in 90 % of them."""
    p, q, counts, bound = 60, 12, [], 0.0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        # Some are likelier than others within one data set, all alike over data sets.
        taste = rng.normal(0, 1.0, p)
        noise = rng.normal(0, 1.0, (50, p))
        order = np.argsort(-(taste + noise), axis=1)[:, :q]
        alive = np.zeros((50, 1, p), dtype=bool)
        np.put_along_axis(alive[:, 0], order, True, axis=1)
        stability = Stability([1.0], {"w": alive})
        counts.append(stability.selected(0.9)["w"].sum())
        bound = stability.false_bound(0.9)
    assert bound == pytest.approx(q**2 / (0.8 * p))
    assert 0 < np.mean(counts) <= bound


def test_the_picture_shows_shares_by_layer_and_marks_the_choice():
    stability = made(sizes=(6, 30, 200))
    figure = draw(stability, chosen=1e-2)
    panels = [axes for axes in figure.axes if axes.images and axes.get_ylabel()]
    panels = [axes for axes in panels if "groups" in axes.get_ylabel()]
    assert [axes.get_ylabel().split("\n") for axes in panels] == [
        ["layer0.weight", "6 groups"],
        ["layer1.weight", "30 groups"],
        ["layer2.weight", "200 groups"],
    ]
    for axes, share in zip(panels, stability.shares().values(), strict=True):
        seen = np.asarray(axes.images[0].get_array())
        weak_to_strong = share[::-1].T
        assert sorted(map(tuple, seen)) == sorted(map(tuple, weak_to_strong))
        assert (np.diff(seen.sum(1)) <= 1e-12).all()  # the longest survivors on top
        assert axes.lines[0].get_xdata()[0] == 1  # type: ignore[index]
    labels = [t.get_text() for t in panels[-1].get_xticklabels()]
    assert labels == ["1e-3", "0.01", "0.1"]
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Stability(LAMS, {}), "no layers"),
        (lambda: Stability([], {"w": np.zeros((2, 0, 3), dtype=bool)}), "no layers"),
        (lambda: Stability(LAMS, {"w": np.zeros((2, 2, 3), dtype=bool)}), "2 strengths"),
        (
            lambda: Stability(
                [1.0], {"a": np.zeros((2, 1, 3), bool), "b": np.zeros((3, 1, 3), bool)}
            ),
            "3 folds",
        ),
        (lambda: made().selected(1.1), "above 0"),
        (lambda: made().false_bound(0.5), "above 0.5"),
        (lambda: made().selected(0.9, at=[3]), "0 to 2"),
        (lambda: draw(made(), chosen=0.5), "one of"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said: str):
    with pytest.raises(InputError, match=said):
        call()
