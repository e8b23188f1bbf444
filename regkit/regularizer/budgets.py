"""What a budget needs of a model: its cost as a function of widths, and groups that can go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regkit.errors import InputError
from regkit.optim.budget import Budget
from regkit.optim.parts import Part
from regkit.optim.schedule import Schedule, Target
from regkit.pruning.counts import num_flops, num_parameters
from regkit.pruning.dead_channels import find_dead_channels
from regkit.pruning.latency import latency
from regkit.pruning.remove import rounded
from regkit.pruning.width_cost import WidthCost, flops_cost, latency_cost, parameters_cost
from regkit.structure.channels import Coupling
from regkit.structure.coupling import couple
from regkit.structure.groups import COUPLED
from regkit.structure.removal import remove_channels
from regkit.structure.replica import replica, unwrapped

COSTS: Mapping[str, Callable[[nn.Module, Any, Coupling], WidthCost]] = {
    "flops": flops_cost,
    "parameters": parameters_cost,
    "latency": latency_cost,
}


def budget_of(
    schedule: Schedule, model: nn.Module, example: Any, parts: Sequence[Part]
) -> Budget | None:
    """Find what a net costs by its widths, where a schedule asks for a budget; else None.

    Of latency it is measured, which takes about a second for each set of channels.

    parts: the penalties on groups.
    Raises: InputError when no groups can be removed, there is no example, or the budget is out of
        reach.
    """
    target = schedule.target
    if target is None or not target.is_budget:
        return None
    if example is None:
        raise InputError(
            f"{target.name}={target.value:g} was given, and no example to run the model on. Give "
            "example=<a clip as in training, batch of 1>, or set model.example_input_array."
        )
    example = _beside(model, example)
    coupling = couple(model, example)
    sets = _sets(coupling, [part for part in parts if part.penalty.sparsifies], target)
    cost = _of_first_rank(COSTS[target.kind](model, example, coupling))
    cost = replace(cost, multiple_of=schedule.multiple_of)
    return _aimed(schedule, target, cost, sets, parts)


def resumed(
    budget: Budget, schedule: Schedule, parts: Sequence[Part], saved: Mapping[str, Any]
) -> Budget:
    """Return the budget with the cost of a saved training: what is measured anew differs.

    saved: fields of that cost.
    Raises: InputError when it is of other channels.
    """
    cost = replace(WidthCost(**saved), multiple_of=schedule.multiple_of)
    if (cost.units, cost.channels) != (budget.cost.units, budget.cost.channels):
        raise InputError(
            f"load_state_dict got a budget of {sum(cost.channels)} channels in {len(cost.units)} "
            f"sets, and this net has {sum(budget.cost.channels)} in {len(budget.cost.units)}, or "
            "of other names. Give the state of a training of this net."
        )
    assert schedule.target is not None, "a budget has a target"
    return _aimed(schedule, schedule.target, cost, budget.sets, parts)


def _aimed(
    schedule: Schedule,
    target: Target,
    cost: WidthCost,
    sets: Mapping[str, str],
    parts: Sequence[Part],
) -> Budget:
    budget = Budget(target.share(cost.whole), cost, sets, {})
    _check_reach(budget, parts, target)
    weighed = schedule.by_cost and not schedule.layerwise
    return replace(budget, lam_scale=_by_cost(budget, parts)) if weighed else budget


def measured_share(kind: str, model: nn.Module, example: Any, multiple_of: int) -> float:
    """Return what a model costs once its dead channels are cut out, as a share of the whole.

    Counted on a copy that is really cut; latency is measured beside the whole.
    """
    example = _beside(model, example)
    whole = replica(unwrapped(model))
    small = replica(whole)
    dead, _ = find_dead_channels(small, example, couple(model, example))
    remove_channels(small, rounded(dead, multiple_of))
    if kind == "parameters":
        return num_parameters(small) / num_parameters(whole)
    if kind == "flops":
        return num_flops(small, example) / num_flops(whole, example)
    times = latency({"whole": whole, "small": small}, example)
    return times["small"].median / times["whole"].median


def _of_first_rank(cost: WidthCost) -> WidthCost:
    """Return what the first of several processes has measured: all have to aim at the same."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return cost
    shared = [cost]
    torch.distributed.broadcast_object_list(shared)
    return shared[0]


def _beside(model: nn.Module, example: Any) -> Any:
    """Return the example on the device of the model."""
    device = next(model.parameters()).device
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, example)


def _sets(coupling: Coupling, parts: Sequence[Part], target: Target) -> dict[str, str]:
    """Return the set of channels that each part makes zero, by its key.

    Raises: InputError when what some part makes zero cannot be cut out.
    """
    known = {c.name: c for c in coupling.channels}
    found = {}
    for part in parts:
        name, layout = part.group_set.name, part.penalty.layout
        # Heads of a layer that is known without a run lie in what it reads of itself.
        inner = known.get(f"{name}.heads") if layout == "head" else None
        channels = inner or known.get(name)
        if layout not in COUPLED or channels is None:
            raise InputError(
                f"{type(part.penalty).__name__} got {target.name}={target.value:g}, and its "
                f'{layout} of {name!r} cannot be cut out of the net. Give groups="channel", or '
                "leave them out by `params`."
            )
        found[part.key] = channels.name
    return found


def _check_reach(budget: Budget, parts: Sequence[Part], target: Target) -> None:
    """Refuse a budget that is met from the start, or not even by one channel of each set."""
    chosen = [part for part in parts if part.key in budget.sets]
    trained = [part for part in chosen if all(p.requires_grad for p in part.parameters)]
    least = budget.cost.lowest([budget.sets[part.key] for part in trained])
    if not least <= budget.share < 1:
        raise InputError(
            f"{target.name}={target.value:g} is {budget.share:.3g} of the whole net "
            f"({budget.cost.whole:.4g}), and what is penalised and trained leaves between "
            f"{least:.3g} and 1 of it ({len(chosen) - len(trained)} of {len(chosen)} sets of "
            "channels are frozen). Give one between, penalise more, or train more."
        )


def _by_cost(budget: Budget, parts: Sequence[Part]) -> dict[str, float]:
    """Return what a weight of each part costs, relative to the mean over all weights."""
    costs = budget.cost.channel_costs()
    chosen = [part for part in parts if part.key in budget.sets]
    sizes = {p.key: p.group_set.size for p in chosen}
    per_weight = {p.key: costs[budget.sets[p.key]] / sizes[p.key] for p in chosen}
    counts = {p.key: p.group_set.num_groups * sizes[p.key] for p in chosen}
    mean = sum(per_weight[key] * counts[key] for key in counts) / sum(counts.values())
    return {key: cost / mean for key, cost in per_weight.items()}
