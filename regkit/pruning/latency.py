"""How long models take for one input, measured side by side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from regkit.structure.replica import call, copied
from regkit.timing import Quartiles, seconds, take_turns

ROUNDS = 5, 200  # at least and at most


@dataclass(frozen=True, eq=False)
class _Runner:
    name: str
    model: Callable[..., Any]


def latency(
    models: Mapping[str, Callable[..., Any]], example: Any, budget_s: float = 4.0
) -> dict[str, Quartiles]:
    """Return how many seconds each model takes for the example, by its name.

    All take turns, so that what slows the machine down slows all of them. The models, or functions
    that run them, run as they are: put them in eval mode. Two runs of each warm up.

    budget_s: of time, for as many rounds as go in, 5 at least and 200 at most.
    """
    runners = [_Runner(name, model) for name, model in models.items()]
    devices = {x.device for x in tree_leaves(example) if isinstance(x, Tensor)}
    example = copied(example)

    def clock(runner: _Runner, _: int) -> float:
        return seconds(lambda: call(runner.model, tree_map(lambda x: x, example)), devices)

    with torch.inference_mode():
        for runner in runners:
            clock(runner, 0)
        one_round = sum(clock(runner, 0) for runner in runners)
        least, most = ROUNDS
        rounds = min(most, max(least, int(budget_s / one_round)))
        found = take_turns(runners, rounds, clock)
    return {name: Quartiles.of(times) for name, times in found.items()}
