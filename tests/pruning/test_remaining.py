"""What would remain, counted by hand and by building the smaller model."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from regkit.models.cnn_gru import CnnGru
from regkit.models.cnn_lstm import CnnLstm
from regkit.models.tiny3d import Tiny3D
from regkit.pruning.remaining import remaining
from regkit.pruning.remove import remove
from regkit.structure.coupling import couple

CLIP = (1, 3, 4, 16, 16)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def tiny3d_flops(a: int, b: int, c: int) -> int:
    """Count two for each product: positions of the output, 27 taps, channels in and out."""
    return 2 * 27 * (4 * 64 * 3 * a + 2 * 16 * a * b + 2 * 4 * b * c) + 2 * c * 3


def zero_writers(model: Tiny3D, block: int, channels: slice) -> None:
    with torch.no_grad():
        for parameter in model.features[block].parameters():
            parameter[channels] = 0


def test_a_dense_model_keeps_everything():
    left = remaining(Tiny3D(num_classes=3), torch.randn(CLIP))
    assert left.parameters == left.all_parameters == size(Tiny3D(num_classes=3))
    assert left.flops == left.all_flops == tiny3d_flops(16, 32, 64)


def test_tiny3d_by_hand():
    """Three channels that nothing writes, twelve that nothing reads."""
    model = Tiny3D(num_classes=3)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    zero_writers(model, 0, slice(3))
    with torch.no_grad():
        model.features[2][0].weight[:, 20:] = 0
    left = remaining(model, torch.randn(CLIP))
    assert left.channels == {
        "features.0.0": (13, 16),
        "features.1.0": (20, 32),
        "features.2.0": (64, 64),
    }
    assert left.parameters == size(Tiny3D(num_classes=3, channels=(13, 20, 64)))
    assert left.all_parameters == size(model)
    assert (left.flops, left.all_flops) == (tiny3d_flops(13, 20, 64), tiny3d_flops(16, 32, 64))
    text = str(left)
    assert "features.1.0  20 of 32" in text
    assert f"{left.parameters:,} of {left.all_parameters:,}" in text
    assert "head.1 (3): is an output of the network" in text


def test_a_shift_above_zero_keeps_a_channel_alive():
    model = Tiny3D(num_classes=3)
    zero_writers(model, 0, slice(3))
    with torch.no_grad():
        model.features[0][1].bias[:3] = torch.tensor([1.0, 0.0, -1.0])
    left = remaining(model, torch.randn(CLIP))
    assert left.channels["features.0.0"] == (14, 16)
    assert any("features.0.0: 1 emit a constant" in note for note in left.notes)


def test_what_only_feeds_removed_channels_goes_too():
    """Five channels of block 0 are read by four of block 1 alone, which nothing reads."""
    model = Tiny3D(num_classes=3).eval()
    with torch.no_grad():
        model.features[1][0].weight[4:, :5] = 0
    clip = torch.randn(CLIP)
    assert remaining(model, clip).channels["features.0.0"] == (16, 16)
    with torch.no_grad():
        model.features[2][0].weight[:, :4] = 0
    left = remaining(model, clip)
    assert left.channels["features.0.0"] == (11, 16)
    assert left.channels["features.1.0"] == (28, 32)
    dead = {"features.0.0": torch.arange(16) < 5, "features.1.0": torch.arange(32) < 4}
    small = remove(model, couple(model, clip), dead)
    assert size(small) == left.parameters
    with torch.no_grad():
        torch.testing.assert_close(small(clip), model(clip), rtol=1e-5, atol=1e-6)


def test_of_an_empty_model_one_channel_of_each_set_stays():
    model = Tiny3D(num_classes=3)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    left = remaining(model, torch.randn(CLIP))
    assert left.parameters == size(Tiny3D(num_classes=3, channels=(1, 1, 1)))
    assert left.flops == tiny3d_flops(1, 1, 1)


@pytest.mark.parametrize(("make", "gates"), [(CnnGru, 3), (CnnLstm, 4)])
def test_hidden_units_by_hand(make: type[nn.Module], gates: int):
    """Five units go: gate rows of both weights and biases, columns, head."""
    model = make(num_classes=3).eval()
    clip = torch.randn(CLIP)
    with torch.no_grad():
        model.rnn.weight_hh_l0[:, :5] = 0
        model.head[1].weight[:, :5] = 0
    left = remaining(model, clip)
    recurrent = [gates * h * (64 + h + 2) + 3 * h for h in (64, 59)]
    assert left.all_parameters - left.parameters == recurrent[0] - recurrent[1]
    # Four frames, two for each product.
    flops = [2 * 4 * gates * h * (64 + h) + 2 * 3 * h for h in (64, 59)]
    assert left.all_flops - left.flops == flops[0] - flops[1]
    with torch.no_grad():
        dead = {"rnn.l0": torch.arange(64) < 5}
        torch.testing.assert_close(remove(model, couple(model, clip), dead)(clip), model(clip))


def test_layers_of_one_recurrent_net_lose_equally_many():
    model = CnnGru(num_classes=3, num_layers=2).eval()
    clip = torch.randn(CLIP)
    with torch.no_grad():
        for level, units in (("l0", slice(0, 6)), ("l1", slice(10, 14))):
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                parameter = getattr(model.rnn, f"{kind}_{level}")
                parameter.view(3, 64, *parameter.shape[1:])[:, units] = 0
    left = remaining(model, clip)
    assert left.channels["rnn.l0"] == left.channels["rnn.l1"] == (60, 64)
    coupling = couple(model, clip)
    numbers = torch.arange(64)
    dead = {"rnn.l0": numbers < 6, "rnn.l1": (numbers >= 10) & (numbers < 14)}
    small = remove(model, coupling, dead)
    assert small.rnn.hidden_size == 60
    with torch.no_grad():
        torch.testing.assert_close(small(clip), model(clip), rtol=1e-5, atol=1e-6)


def test_half_of_a_sigmoid_goes_into_the_next_bias():
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = 0
        model[2].weight[:, 5] = 0
    left = remaining(model, torch.randn(1, 4))
    assert left.channels == {"0": (3, 6)}
    assert left.parameters == 3 * 5 + 4 * 3


def test_flops_are_those_of_a_run():
    model, clip = CnnGru(num_classes=3).eval(), torch.randn(CLIP)
    with FlopCounterMode(display=False) as counter:
        model(clip)
    assert remaining(model, clip).all_flops == counter.get_total_flops()


def test_a_model_that_reads_a_value_is_run_itself():
    """On meta tensors there is no value to read."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

        def forward(self, x):
            return self.net(x) if float(x.sum()) > -100 else x

    assert remaining(Reads(), torch.randn(1, 4)).flops == 2 * (4 * 6 + 6 * 3)
