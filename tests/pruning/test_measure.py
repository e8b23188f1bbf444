"""Density counts exact zeros."""

import pytest
import torch
from torch import nn

from regkit import density


def test_density_by_hand():
    model = nn.Sequential(nn.Conv3d(1, 2, (1, 1, 2), bias=True), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -0.0, 0.0, 0.0]).view_as(model[0].weight))
        model[1].weight.copy_(torch.tensor([[1.0, 1], [1, 0], [1e-45, 0]]))
    left = density(model)
    assert left.layers == {"0.weight": 0.25, "1.weight": 4 / 6}
    assert left.total == 0.5
    assert (left.live_groups, left.num_groups) == (4, 5)
    assert "50.00%" in str(left)


def test_density_of_named_tensors():
    left = density({"a": torch.tensor(0.0), "b": torch.ones(2, 2), "c": torch.zeros(0, 3)})
    assert left.total == pytest.approx(0.8)
    assert left.layers == {"a": 0.0, "b": 1.0, "c": 0.0}


def test_nothing_to_count():
    assert density(nn.BatchNorm3d(3)).num_groups == 0
