"""The front, against its definition."""

import numpy as np
import pytest

from regkit.selection.pareto import front

WAYS = ("maximize", "minimize", "minimize")


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_front_is_what_no_other_beats(num_objectives: int, seed: int):
    values = np.random.default_rng(seed).integers(0, 5, (12, num_objectives)).astype(float)
    ways = WAYS[:num_objectives]
    kept = []
    for i, own in enumerate(values):
        beaten = False
        for other in values:
            as_good = better = 0
            for x, y, way in zip(own, other, ways, strict=True):
                as_good += y == x or (y > x) == (way == "maximize")
                better += y != x and (y > x) == (way == "maximize")
            beaten |= as_good == num_objectives and better > 0
        if not beaten:
            kept.append(i)
    found = front(values.tolist(), ways)
    assert sorted(found) == kept
    firsts = [values[place, 0] for place in found]
    assert firsts == sorted(firsts, reverse=True)
