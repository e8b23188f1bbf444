"""The net of any size, and the names."""

import pytest
import torch

from regkit.benchmarks.step import candidates


@pytest.mark.parametrize(("wanted", "least"), [(1e4, 0.4), (1e5, 0.75), (1e6, 0.8), (2e7, 0.9)])
def test_the_synthetic_net_has_the_size_asked_for(wanted: float, least: float):
    number = sum(p.numel() for p in candidates.make_net("synthetic", wanted).parameters())
    assert least * wanted <= number <= wanted


def test_the_large_synthetic_net_has_tensors_of_all_sizes():
    with torch.device("meta"):
        net = candidates.make_net("synthetic", 300e6)
    parameters = list(net.parameters())
    assert 0.98 * 300e6 < sum(p.numel() for p in parameters) <= 300e6
    assert len(parameters) == 302
    kernels = {tuple(p.shape[2:]) for p in parameters if p.ndim == 5}
    assert kernels == {(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1)}
    assert min(p.numel() for p in parameters) < 1000
    assert max(p.numel() for p in parameters) > 10_000_000


def test_names_are_those_of_torchvision():
    assert {"r3d_18", "mvit_v2_s", "swin3d_b", "synthetic"} <= set(candidates.model_names())
    assert sum(p.numel() for p in candidates.make_net("mc3_18", 0.0).parameters()) == 11_695_440
