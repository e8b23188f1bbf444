"""Planted zeros are found; first weights give another explanation."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from regkit.inference.explain.evidence import agreement, reinitialised
from regkit.inference.explain.occlusion import occlusion
from regkit.inference.explain.survived import draw_weights, survived, weights_inches
from regkit.lightning.monitors.canvas import make_figure, pixels
from regkit.models.cnn_gru import CnnGru
from regkit.models.r2plus1d_18 import R2Plus1D18
from regkit.models.tiny3d import Tiny3D


@pytest.fixture
def tiny() -> Tiny3D:
    """Reads no red, nothing of the frame behind, no first row; filters are dead."""
    net = Tiny3D(num_classes=3, channels=[4, 6])
    first, second = (net.features.get_submodule(f"{k}.0").weight for k in range(2))
    with torch.no_grad():
        first[:, 0] = 0
        first[:, :, 2] = 0
        first[:, :, :, 0] = 0
        second[[1, 2, 5]] = 0
        second[:, :, 0] = 0
    return net.eval()


def test_what_the_first_layer_reads(tiny: Tiny3D):
    first = survived(tiny).first
    assert first is not None
    assert first.name == "features.0.0"
    np.testing.assert_allclose(first.live("channels"), np.array([0, 1, 1]) * 2 / 3 * 2 / 3)
    np.testing.assert_allclose(first.live("taps"), np.array([1, 1, 0]) * 2 / 3 * 2 / 3)
    np.testing.assert_allclose(first.live("rows"), np.array([0, 1, 1]) * 2 / 3 * 2 / 3)
    np.testing.assert_allclose(first.live("columns"), np.full(3, (2 / 3) ** 3))
    weight = tiny.features.get_submodule("0.0").weight.detach().double()
    for channel in range(3):
        for tap in range(3):
            length = weight[:, channel, tap].norm().item()
            assert first.norm("channels", "taps")[channel, tap] == pytest.approx(length)
    assert first.norm("rows")[2] == pytest.approx(weight[:, :, :, 2].norm().item())


def test_what_is_left_by_layer(tiny: Tiny3D):
    first, second, head = survived(tiny).layers
    assert [(x.live, x.num) for x in (first, second, head)] == [(4, 4), (3, 6), (3, 3)]
    np.testing.assert_allclose(first.taps, np.array([1, 1, 0]) * 4 / 9, rtol=1e-6)
    np.testing.assert_allclose(second.taps, [0, 0.5, 0.5])
    weight = tiny.features.get_submodule("1.0").weight.detach().double()
    lengths = [weight[:, :, tap].norm().item() for tap in range(3)]
    np.testing.assert_allclose(second.tap_norms, lengths)
    assert head.taps.size == head.tap_norms.size == 0
    assert not any(x.recurrent for x in (first, second, head))


def test_hidden_units_live_where_any_gate_reads():
    net = CnnGru(num_classes=2, hidden_size=5, bidirectional=True)
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0"):
            getattr(net.rnn, name).view(3, 5, -1)[:, [0, 3]] = 0
        net.rnn.weight_hh_l0.view(3, 5, 5)[:, 1] = 0  # unit 1 reads the layer below only
        net.rnn.weight_hh_l0[5 + 3, 1] = 1.0  # one gate of unit 3 reads the time before
        net.rnn.weight_ih_l0_reverse.zero_()
        net.rnn.weight_hh_l0_reverse.view(3, 5, 5)[:, 1:] = 0
    units = {x.name: (x.live, x.num) for x in survived(net).layers if x.recurrent}
    assert units == {"rnn.units_l0": (4, 5), "rnn.units_l0_reverse": (1, 5)}


def test_nets_without_convolutions_have_no_first_layer():
    found = survived(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    assert found.first is None
    assert [(x.live, x.num) for x in found.layers] == [(2, 2)]


@pytest.mark.parametrize("model", [Tiny3D, CnnGru, R2Plus1D18, None])
def test_the_picture_of_the_weights(model: type[nn.Module] | None):
    net = nn.Flatten() if model is None else model(num_classes=3)
    found = survived(net)
    figure = make_figure(10.0, weights_inches(found))
    draw_weights(figure.subfigures(1, 1), found, shrunk=False)
    assert (pixels(figure) < 255).any() == (model is not None)


def test_agreement_is_spearmans():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(0, 5, size=(2, 9)).astype(float)  # with ties
        assert agreement(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert agreement(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1)
    assert agreement(np.zeros(5), np.arange(5.0)) is None


def looks_at(frames: list[int], shape: tuple[int, ...]) -> nn.Module:
    """Score a clip linearly by the brightness of some frames."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 2)).eval()
    weight = torch.zeros(2, *shape)
    weight[0, :, frames] = 1.0
    with torch.no_grad():
        net[1].weight.copy_(weight.flatten(1))
    return net


def test_first_weights_give_another_curve():
    clip: Tensor = torch.rand(3, 12, 8, 8)
    clip[:, [4, 5]] += 1
    net = looks_at([4, 5], tuple(clip.shape))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    fresh = [reinitialised(net, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(fresh[0][1].weight, fresh[1][1].weight)
    assert not torch.equal(fresh[0][1].weight, fresh[2][1].weight)
    curves = [occlusion(n, clip, 0, 1, "mean").numpy() for n in (net, *fresh)]
    assert curves[0].argsort()[-2:].tolist() in ([4, 5], [5, 4])
    for curve in (curves[1], curves[3]):
        found = agreement(curves[0], curve)
        assert found is not None
        assert found < 0.9
    assert agreement(curves[1], curves[2]) == pytest.approx(1)


def test_first_weights_are_those_of_all_layers(tiny: Tiny3D):
    fresh = reinitialised(tiny.train(), 0)
    assert not fresh.training
    assert all(x.live == x.num for x in survived(fresh).layers)
