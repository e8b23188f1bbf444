"""The encoder of the recurrent models looks at one frame at a time, and at where things are."""

import pytest
import torch
from torch import nn

from regkit.errors import InputError
from regkit.models.cnn_gru import CnnGru
from regkit.models.cnn_lstm import CnnLstm
from regkit.models.frame_rnn import make_frame_encoder

every_encoder = pytest.mark.parametrize("name", ["tiny", "resnet18"])


@every_encoder
def test_an_embedding_depends_on_its_own_frame_only(name: str):
    torch.manual_seed(0)
    encoder = make_frame_encoder(name, pretrained=None, channels=None, dim=6).eval()
    clip = torch.randn(2, 3, 4, 32, 32)
    frames = encoder(clip)
    assert frames.shape == (2, 4, 6)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(encoder(clip[:, :, order]), frames[:, order])
    changed = clip.clone()
    changed[1, :, 2] += 1
    moved = (encoder(changed) - frames).abs().amax(dim=2) > 1e-5
    assert moved.nonzero().tolist() == [[1, 2]]


@every_encoder
def test_an_embedding_knows_where_a_thing_is(name: str):
    torch.manual_seed(0)
    encoder = make_frame_encoder(name, pretrained=None, channels=None, dim=6).eval()
    left = torch.zeros(1, 3, 1, 128, 128)
    left[..., 48:80, 16:48] = 1
    right = left.flip(-1)
    assert (encoder(left) - encoder(right)).norm() > 0.05 * encoder(left).norm()


@pytest.mark.parametrize("kind", [CnnGru, CnnLstm])
@pytest.mark.parametrize("encoder", ["tiny", "resnet18"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_options_fit_together(
    kind: type[CnnGru] | type[CnnLstm], encoder: str, bidirectional: bool
):
    model = kind(
        num_classes=3,
        encoder=encoder,
        hidden_size=10,
        num_layers=2,
        bidirectional=bidirectional,
    )
    assert model(torch.randn(2, 3, 2, 32, 32)).shape == (2, 3)
    assert model.rnn.hidden_size == 10
    assert model.rnn.num_layers == 2
    assert model.rnn.bidirectional == bidirectional


def test_an_unknown_encoder_lists_those_there_are():
    with pytest.raises(InputError, match='got encoder="vgg"; allowed: "tiny" or "resnet18"'):
        CnnGru(num_classes=3, encoder="vgg")


def test_the_tiny_encoder_has_no_pretrained_weights():
    with pytest.raises(InputError, match='Give encoder="resnet18", or leave pretrained out'):
        CnnLstm(num_classes=3, pretrained="DEFAULT")


@pytest.mark.parametrize("kind", [CnnGru, CnnLstm])
def test_the_tiny_encoder_is_as_wide_as_asked(kind: type[CnnGru] | type[CnnLstm]):
    model = kind(num_classes=3, channels=[4, 6])
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [4, 6]
    assert model(torch.randn(2, 3, 2, 16, 16)).shape == (2, 3)
    with pytest.raises(InputError, match=r'channels=\[4, 6\] with encoder="resnet18"'):
        kind(num_classes=3, encoder="resnet18", channels=[4, 6])
