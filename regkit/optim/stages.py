"""Stages of an optimizer that begins anew: which one it is, and how much a new point weighs."""

import math
import warnings
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from regkit.errors import InputError

Group = dict[str, Any]


def stage_of(group: Group) -> int:
    """Return the number of the stage that the next step is in, from 0."""
    return bisect_right(group["stages"], group["num_done"])


def averaging_weight(group: Group) -> float:
    """Return the weight of the next new point: constant, and in the last stage rising to 1."""
    stage = stage_of(group)
    if stage < len(group["stages"]):
        return group["averaging"]
    begun = group["stages"][-1] if stage else 0
    return min(group["averaging"] * math.sqrt(group["num_done"] - begun + 1), 1.0)


def step_number(who: str, stage: int | float, num_steps: int | None) -> int | float:
    """Return after how many steps a stage begins that is given as a share of all steps."""
    if isinstance(stage, float) and 0 < stage < 1:
        if num_steps is None:
            raise InputError(
                f"{who} got stages with the share {stage} and no num_steps to take it of; give "
                "num_steps, or the number of steps after which the stage begins."
            )
        return round(stage * num_steps)
    return stage


def check_options(who: str, group: Mapping[str, Any]) -> None:
    """Refuse options out of range."""
    for name, low, high, allowed in (
        ("lr", 0.0, math.inf, ">= 0 (no tensor)"),
        ("averaging", math.ulp(0.0), 1.0, "in (0, 1]"),
        ("stage_decay", math.ulp(0.0), 1.0, "in (0, 1]"),
        ("eps", math.ulp(0.0), math.inf, "> 0"),
    ):
        value = group.get(name, 1.0)
        number = isinstance(value, int | float) and math.isfinite(value)
        if not number or not low <= value <= high:
            raise InputError(f"{who} got {name}={value!r}; {name} is a number {allowed}.")
    stages = group["stages"]
    whole = all(isinstance(s, int) and s >= 1 for s in stages)
    if not whole or list(stages) != sorted(set(stages)):
        raise InputError(
            f"{who} got stages={tuple(stages)!r}; give rising numbers of steps (whole, >= 1), or "
            "shares of num_steps, in (0, 1)."
        )


def warn_of_a_dense_end(who: str, group: Group, num_steps: int | None) -> None:
    """Warn where the last stage is too short for the weight to reach 1."""
    begun = max(group["stages"], default=0)
    least = math.ceil(group["averaging"] ** -2)
    if num_steps is not None and num_steps - begun < least:
        warnings.warn(
            f"{who}: the last stage has {num_steps - begun} steps, but with averaging="
            f"{group['averaging']} its weight reaches 1 only at step {least}: the final weights "
            "will be an average without zeros. Begin it earlier, or raise averaging.",
            stacklevel=4,
        )
