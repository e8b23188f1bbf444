"""Activation L1: the mean of |z| by a loop, before any average over space."""

import pytest
import torch
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.penalties import ActivationL1, TemporalSmoothness
from regkit.regularizer.activations import FrameCollector


def collected(module: nn.Module, clip: Tensor) -> Tensor:
    penalty = ActivationL1(0.5)
    collector = FrameCollector(module, penalty.layout, penalty.pooled)
    module(clip)
    (frames,) = collector.take()
    collector.remove()
    assert frames.shape[1] >= penalty.least_frames
    return penalty.value(frames).detach()


def by_loop(output: Tensor) -> float:
    numbers = output.detach().flatten().tolist()
    return 0.5 * sum(abs(number) for number in numbers) / len(numbers)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv3d(3, 4, 3), (2, 3, 5, 6, 7)),
        (nn.Conv2d(3, 4, 3), (2, 3, 6, 7)),
        (nn.Linear(6, 5), (2, 3, 6)),
        (nn.Linear(6, 5), (2, 6)),
        (nn.GRU(6, 5), (4, 2, 6)),
    ],
    ids=["Conv3d", "Conv2d", "frames", "vector", "GRU"],
)
def test_value_is_the_mean_absolute_output(module: nn.Module, shape: tuple[int, ...]):
    clip = torch.randn(shape)
    output = module(clip)
    output = output[0] if isinstance(output, tuple) else output
    assert float(collected(module, clip)) == pytest.approx(by_loop(output), rel=1e-5)


def test_signs_do_not_cancel_over_space():
    checkerboard = torch.ones(1, 1, 2, 4, 4)
    checkerboard[..., ::2] = -1
    assert float(collected(nn.Identity(), checkerboard)) == 0.5


def test_channels_last_changes_nothing():
    module = nn.Conv3d(3, 4, 3)
    clip = torch.randn(2, 3, 5, 6, 7)
    last = clip.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(collected(module, last), collected(module, clip))


def test_what_is_written_into_the_output_later_does_not_count():
    """The batch norms of ResNets are followed by an activation in place."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    penalty = ActivationL1(0.5)
    collector = FrameCollector(net[0], penalty.layout, penalty.pooled)
    clip = torch.randn(2, 3, 4)
    net(clip).sum().backward()
    net(clip)
    (first, second) = collector.take()
    for frames in (first, second):
        assert float(penalty.value(frames).detach()) == pytest.approx(
            by_loop(net[0](clip)), rel=1e-5
        )
    (net(clip).sum() + penalty.value(second)).backward()


def test_the_gradient_is_the_sign():
    frames = torch.tensor([[[1.0, -2.0, 0.0, 4.0]]], requires_grad=True)
    ActivationL1(2.0).value(frames).backward()
    assert frames.grad is not None
    assert frames.grad.tolist() == [[[0.5, -0.5, 0.0, 0.5]]]


def test_frame_embeddings_stay_pooled():
    penalty = TemporalSmoothness(1.0)
    collector = FrameCollector(module := nn.Identity(), penalty.layout, penalty.pooled)
    module(clip := torch.randn(2, 3, 5, 6, 7, requires_grad=True))
    torch.testing.assert_close(collector.take(), [clip.mean((3, 4)).transpose(1, 2)])


def test_a_layout_is_refused():
    with pytest.raises(InputError, match="ActivationL1 got layout='BTD'; every activation counts"):
        ActivationL1(1.0, layout="BTD")
