"""The Pareto front: what no other beats in all objectives at once."""

from collections.abc import Sequence


def front(points: Sequence[Sequence[float]], ways: Sequence[str]) -> list[int]:
    """Return the places of the points that no other beats, the best by the first objective first.

    One beats another when it is as good in every objective and better in one.

    ways: maximize or minimize, for each objective.
    """
    signs = [1.0 if way == "maximize" else -1.0 for way in ways]
    goods = [tuple(s * v for s, v in zip(signs, point, strict=True)) for point in points]
    kept = [
        place
        for place, good in enumerate(goods)
        if not any(other != good and _all_at_least(other, good) for other in goods)
    ]
    return sorted(kept, key=lambda place: goods[place], reverse=True)


def _all_at_least(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True))
