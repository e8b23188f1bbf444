"""A smaller model comes back from its weights and sizes."""

import pytest
import torch
from torch import nn

import regkit
from regkit.errors import InputError
from regkit.models.cnn_lstm import CnnLstm
from regkit.models.tiny3d import Tiny3D
from regkit.pruning.resize import restore, sizes

CLIP = (1, 3, 4, 16, 16)


def shrunk(model: nn.Module) -> nn.Module:
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[: len(parameter) // 2] = 0
    return regkit.shrink(model, torch.randn(CLIP), timed=False)[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tiny3D(num_classes=3),
        lambda: CnnLstm(num_classes=3, num_layers=2, bidirectional=True),
        lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.Sigmoid(), nn.Conv3d(4, 2, 2, bias=False)),
    ],
    ids=["tiny3d", "cnn_lstm", "new_bias"],
)
def test_a_shrunk_model_comes_back(make):
    torch.manual_seed(0)
    small = shrunk(make())
    new = make().eval()
    restore(new, small.state_dict(), sizes(make(), small))
    clip = torch.randn(2, *CLIP[1:])
    with torch.no_grad():
        assert torch.equal(new(clip), small(clip))
    assert str(new) == str(small)


def test_whole_models_need_no_sizes():
    model = Tiny3D(num_classes=3)
    assert sizes(model, Tiny3D(num_classes=3)) == {}
    restore(Tiny3D(num_classes=3), model.state_dict(), {})


def test_weights_of_another_model_are_refused():
    small = shrunk(Tiny3D(num_classes=3))
    with pytest.raises(InputError, match=r"restore got features\.0\.0.* has no module"):
        restore(nn.Linear(2, 2), small.state_dict(), {})
    with pytest.raises(InputError, match="has no such number"):
        restore(Tiny3D(num_classes=3), {}, {"features.0.0.breadth": 3})
    with pytest.raises(InputError, match="do not fit Tiny3D"):
        restore(Tiny3D(num_classes=3), {"features.0.0.weight": torch.zeros(16, 3, 3, 3, 3)}, {})


def test_other_widths_and_other_classes_are_refused():
    other = Tiny3D(num_classes=3, channels=[8, 8, 8])
    with pytest.raises(InputError, match="do not fit Tiny3D"):
        restore(Tiny3D(num_classes=3), other.state_dict(), {})
    small = shrunk(Tiny3D(num_classes=3))
    with pytest.raises(InputError, match="of as many classes"):
        restore(Tiny3D(num_classes=5), small.state_dict(), sizes(Tiny3D(num_classes=3), small))
