"""Loops, concatenations, shuffles and attention by hand: what is found, and that it can go."""

import re
from copy import deepcopy

import pytest
import torch
from own_nets import OWN, example_of
from torch.utils._pytree import tree_leaves

import regkit
from regkit.penalties import GroupLasso
from regkit.pruning.counts import num_parameters
from regkit.pruning.remove import remove
from regkit.structure.coupling import couple
from regkit.structure.replica import outputs

FOUND: dict[str, dict[str, int]] = {
    "conv_lstm": {"stem": 5, "gates": 6},
    "conv_lstm_split": {"stem": 5, "gates": 6},
    "conv_gru": {"gates": 6},
    "unet": {"down1.0": 4, "down2.0": 6, "bottom.0": 8, "up2": 6, "up1": 4}
    | {"join2.0": 6, "join1.0": 4},
    "unet_upsampled": {"down1.0": 4, "down2.0": 6, "bottom.0": 8, "up2.1": 6, "up1.1": 4}
    | {"join2.0": 6, "join1.0": 4},
    "shuffle": {"one": 6, "mix.0": 6},
    "shuffle_grouped": {"one": 3, "mix.0": 6},  # a channel of each of the two groups
    "shift": {"two.0": 6},
    "non_local": {"stem.0": 6, "g": 4},
    "attention_packed": {"qkv": 4, "fc1": 14},
    "attention_apart": {"q": 4, "fc1": 14},
    "attention_shared": {"q": 2, "fc1": 14},  # two queries share a key
    "attention_by_hand": {"qkv": 4, "fc1": 14},
    "mixer": {"token1": 10, "channel1": 12},
    "gated": {"down": 5, "after.0": 6},
    "pyramid": {"one.0": 4, "two.0": 6, "side1": 5, "smooth.0": 6},
    "edits": {"slow.0": 6, "fast.0": 4},
    "lstm_cells": {"embed": 5, "cell": 6},
    "gru_cells": {"embed": 5, "cell": 6},
    "temporal": {"frame.0": 6},
}
WHY = {
    "shuffle": r"stem.0 \(4\): its places in mix.0.weight follow no pattern",
    "shift": "one.0: without some channels the outputs change",
    "gated": r"left.0 \(4\): passes a mean over the channels",
    "non_local": r"theta \(4\): is read by a product of activations",
    "attention_packed": r"embed \(10\): passes norm, a LayerNorm: its statistics run over",
}


def tensors(value: object) -> list[torch.Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("name", OWN)
def test_what_is_found_is_removed_with_equal_outputs_and_the_input_stays(name: str):
    model, example = OWN[name]().eval(), example_of(name)
    before = deepcopy(example)
    coupling = couple(model, example)
    assert {c.name: c.num_groups for c in coupling.channels} == FOUND[name]
    if name in WHY:
        assert re.search(WHY[name], "\n".join(coupling.notes))
    for kind in ("channel", "channel_inputs"):
        dense, dead = deepcopy(model.state_dict()), {}
        for group_set in coupling.group_sets(kind):
            dead[group_set.name] = torch.arange(group_set.num_groups) % 3 == 0
            mask = dead[group_set.name][:, None]
            group_set.write(group_set.rows().masked_fill(mask, 0))
        small = remove(model, coupling, dead)
        assert num_parameters(small) < num_parameters(model)
        with torch.no_grad():
            wanted, left = (outputs(m, example) for m in (model, small))
        model.load_state_dict(dense)
        torch.testing.assert_close(left, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(example, before, rtol=0, atol=0)
    assert len(tensors(example)) == len(tensors(before))


@pytest.mark.parametrize("groups", ["channel", "channel_inputs"])
def test_slices_of_one_parameter_are_one_penalty(groups: str):
    """Of a norm after a concatenation, and of what reads it, each branch has its own rows."""
    model = OWN["unet"]()
    reg = regkit.Regularizer(model, GroupLasso(0.05, groups=groups), example=example_of("unet"))
    by_hand = sum(
        0.05 * group_set.size**0.5 * group_set.rows().norm(dim=1).sum()
        for group_set in couple(model, example_of("unet")).group_sets(groups)
    )
    torch.testing.assert_close(reg.value(), by_hand)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reg.attach(optimizer)
    sets = couple(model, example_of("unet")).group_sets(groups)
    wanted = [
        rows * (1 - 0.1 * 0.05 * g.size**0.5 / rows.norm(dim=1, keepdim=True)).clamp(min=0)
        for g in sets
        for rows in [g.rows().clone()]
    ]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for group_set, rows in zip(sets, wanted, strict=True):
        torch.testing.assert_close(group_set.rows(), rows)
