"""Nets that look at one thing only: occlusion points there, and nowhere else."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.inference.explain.evidence import Questions, gather, strongest
from regkit.inference.explain.occlusion import (
    _sizes,
    drops,
    log_odds,
    occluded_channels,
    occluded_places,
    occlusion,
    order_effect,
)

FRAMES, SIDE = 9, 8


class Looks(nn.Module):
    """Two classes; the log-odds of the first are what `look` makes of a clip."""

    def __init__(self, look: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.look = look
        self.sizes: list[int] = []
        self.eval()

    def forward(self, clips: Tensor) -> Tensor:
        self.sizes.append(len(clips))
        value = torch.stack([self.look(clip) for clip in clips])
        return torch.stack([value, torch.zeros_like(value)], dim=1)


def weighted(weights: Tensor) -> Looks:
    return Looks(lambda clip: (clip.double() * weights).sum())


@pytest.fixture
def clip() -> Tensor:
    return torch.rand(3, FRAMES, SIDE, SIDE)


def by_hand(look: Callable, clip: Tensor, span: int, fill: str) -> list[float]:
    """Write the drops out, frame by frame, in NumPy."""
    full = clip.numpy().astype(np.float64)
    found = []
    for start in range(FRAMES - span + 1):
        frames = [full[:, t] for t in range(FRAMES)]
        for t in range(start, start + span):
            if fill == "mean":
                frames[t] = sum(full[:, s] for s in range(FRAMES)) / FRAMES
            elif fill == "flat":
                colour = [full[c].sum() / full[c].size for c in range(3)]
                frames[t] = np.ones_like(frames[t]) * np.reshape(colour, (3, 1, 1))
            elif start > 0:
                frames[t] = full[:, start - 1]
            else:
                frames[t] = full[:, min(span, FRAMES - 1)]
        changed = torch.from_numpy(np.stack(frames, axis=1))
        found.append(float(look(torch.from_numpy(full)) - look(changed)))
    return found


@pytest.mark.parametrize("fill", ["freeze", "mean", "flat"])
@given(span=st.integers(1, FRAMES), batch_size=st.integers(1, 12))
def test_any_net_gives_what_brute_force_gives(fill: str, span: int, batch_size: int):
    generator = torch.Generator().manual_seed(span)
    clip = torch.rand(3, FRAMES, SIDE, SIDE, generator=generator)
    weights = torch.randn(3, FRAMES, SIDE, SIDE, generator=generator)

    def look(one: Tensor) -> Tensor:
        return (one.double() * weights).sum().tanh() + (one[0, 1:] * one[1, :-1]).double().mean()

    found = occlusion(Looks(look), clip, 0, span, fill, batch_size)
    np.testing.assert_allclose(found.numpy(), by_hand(look, clip, span, fill), atol=1e-5)


@pytest.mark.parametrize("fill", ["mean", "flat"])
def test_a_net_that_sees_two_frames_only(clip: Tensor, fill: str):
    seen = torch.zeros(3, FRAMES, SIDE, SIDE)
    seen[:, 2], seen[:, 6] = 1.0, -0.5
    clip[:, 2] += 1  # brighter than the mean, so that it speaks for the class
    found = occlusion(weighted(seen), clip, 0, 1, fill).numpy()
    brightness = clip.double().sum((0, 2, 3))
    excess = (brightness - brightness.mean()).numpy()
    expected = np.zeros(FRAMES)
    expected[2], expected[6] = excess[2], -0.5 * excess[6]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert int(found.argmax()) == 2
    assert np.abs(np.delete(found, [2, 6])).max() < 1e-9
    other_class = occlusion(weighted(seen), clip, 1, 1, fill).numpy()
    np.testing.assert_allclose(other_class, -found, atol=1e-9)


@pytest.mark.parametrize("fill", ["mean", "flat"])
@pytest.mark.parametrize("span", [1, 3])
def test_what_disjoint_spans_cost_adds_up_where_the_net_adds_up(clip: Tensor, fill: str, span: int):
    net = weighted(torch.randn(3, FRAMES, SIDE, SIDE))
    parts = occlusion(net, clip, 0, span, fill)[::span]
    whole = occlusion(net, clip, 0, FRAMES, fill)
    assert whole.abs() > 1
    torch.testing.assert_close(parts.sum(), whole[0], atol=1e-4, rtol=1e-6)


def test_what_cells_cost_adds_up_where_the_net_adds_up(clip: Tensor):
    net = weighted(torch.randn(3, FRAMES, SIDE, SIDE))
    for grid in (3, 4):  # 3 does not divide the side
        cells = occluded_places(net, clip, 0, grid, "flat")
        whole = occluded_places(net, clip, 0, 1, "flat")
        torch.testing.assert_close(cells.sum(), whole[0, 0], atol=1e-4, rtol=1e-6)


def test_a_net_that_sees_the_lower_left_only(clip: Tensor):
    pattern = torch.zeros(3, FRAMES, SIDE, SIDE)
    pattern[:, :, 4:, :4] = torch.randn(3, FRAMES, 4, 4)
    for fill in ("freeze", "mean", "flat"):
        found = occluded_places(weighted(pattern), clip, 0, 2, fill)
        assert found[1, 0].abs() > 0.1
        assert found[[0, 0, 1], [0, 1, 1]].abs().max() == 0
    still = clip[:, :1].double()
    expected = ((clip.double() - still) * pattern)[:, :, 4:, :4].sum()
    found = occluded_places(weighted(pattern), clip, 0, 2, "freeze")
    torch.testing.assert_close(found[1, 0], expected, atol=1e-5, rtol=1e-6)


def test_a_net_that_sees_red_only(clip: Tensor):
    pattern = torch.zeros(3, FRAMES, SIDE, SIDE)
    pattern[0] = torch.randn(FRAMES, SIDE, SIDE)
    found = occluded_channels(weighted(pattern), clip, 0)
    red = clip[0].double()
    torch.testing.assert_close(
        found[0], ((red - red.mean()) * pattern[0]).sum(), atol=1e-4, rtol=1e-6
    )
    assert found[1:].abs().max() == 0
    assert len(found) == 3


def moving(clip: Tensor) -> Tensor:
    """Count the steps in time at which something moves."""
    return (clip[:, 1:] - clip[:, :-1]).double().abs().sum((0, 2, 3)).mul(1e3).tanh().sum()


def test_a_net_that_sees_motion_only(clip: Tensor):
    """Something flashes in frames 4 and 5, and is gone: 3 steps, or 2 where they are equal."""
    clip = clip[:, :1].repeat(1, FRAMES, 1, 1)
    clip[:, 4, 2:4] += 1.0
    clip[:, 5, 2:4] += 2.0
    found = occlusion(Looks(moving), clip, 0, 2, "freeze").tolist()
    # Span:              01   12   23   34   45   56   67   78
    np.testing.assert_allclose(found, [0, 0, 0, 1, 3, 1, 0, 0], atol=1e-9)
    assert order_effect(Looks(moving), clip, 0).still == pytest.approx(3)
    assert order_effect(Looks(moving), clip, 0).reversed == pytest.approx(0)


def test_a_net_blind_to_order(clip: Tensor):
    def look(one: Tensor) -> Tensor:
        return one.double().mean((0, 2, 3)).pow(2).sum()

    found = order_effect(Looks(look), clip, 0, num_draws=5)
    assert abs(found.reversed) < 1e-9
    assert max(map(abs, found.shuffled)) < 1e-9
    assert len(found.shuffled) == 5
    assert abs(found.still) > 1e-3


def test_a_net_that_sees_order(clip: Tensor):
    ramp = torch.arange(FRAMES).view(FRAMES, 1, 1).double()
    net = weighted(ramp.expand(3, FRAMES, SIDE, SIDE))
    clip = clip + ramp / 10  # brighter and brighter, as the net wants it
    light = clip.double().sum((0, 2, 3))
    found = order_effect(net, clip, 0, num_draws=400, seed=1)
    steps = torch.arange(FRAMES)
    assert found.reversed == pytest.approx(float((steps * (light - light.flip(0))).sum()), rel=1e-6)
    # In the mean over all orders each frame stands in the middle.
    expected = float((steps * light).sum() - steps.double().mean() * light.sum())
    assert found.shuffled_mean == pytest.approx(expected, rel=0.1)
    middle = steps.sum() * light[FRAMES // 2]
    assert found.still == pytest.approx(float((steps * light).sum() - middle), rel=1e-6)
    assert found == order_effect(net, clip, 0, num_draws=400, seed=1)
    assert found.shuffled != order_effect(net, clip, 0, num_draws=400, seed=2).shuffled


def test_log_odds_are_those_of_the_softmax():
    scores = torch.randn(5, 4)
    p = scores.double().softmax(1)
    for target in range(4):
        expected = (p[:, target] / (1 - p[:, target])).log()
        torch.testing.assert_close(log_odds(scores, target), expected)
    sure = torch.tensor([[50.0, 0.0], [60.0, 0.0]])  # both are 1 in single precision
    assert log_odds(sure, 0).tolist() == [50.0, 60.0]


def test_copies_pass_the_net_in_batches_and_the_clip_stays(clip: Tensor):
    net, before = weighted(torch.randn(3, FRAMES, SIDE, SIDE)), clip.clone()
    occlusion(net, clip, 0, 2, batch_size=4)
    assert net.sizes == [4, 4, 1]  # the clip, and 8 spans of 2 in 9 frames
    occluded_places(net, clip, 0, 3)
    occluded_channels(net, clip, 0)
    order_effect(net, clip, 0)
    assert torch.equal(clip, before)


def test_no_gradient_is_kept(clip: Tensor):
    net = nn.Sequential(nn.Flatten(), nn.Linear(clip.numel(), 2)).eval()
    assert not occlusion(net, clip, 0, 2).requires_grad


def test_strongest_spans_do_not_overlap():
    found = np.array([0.1, 0.9, 0.8, 0.2, 0.7, -1.0, 0.3, 1e-9])
    assert strongest(found, 2) == [1, 4, 6]
    assert strongest(found, 4) == [1, 6]
    assert strongest(-np.abs(found), 2) == []
    assert strongest(np.full(4, 1e-8), 1) == []  # rounding carries nothing


def test_gather_takes_the_predicted_class(clip: Tensor):
    net = weighted(-torch.ones(3, FRAMES, SIDE, SIDE))  # so class 1 wins
    found = gather(net, clip, None, Questions())
    assert found.target == 1
    assert found.span == 2  # a sixth of 9 frames
    assert gather(net, clip, 0, Questions(span=3)).span == 3
    given = gather(net, clip / 1e3, 0, Questions(fill="flat", span=2))
    look = weighted(-torch.ones(3, FRAMES, SIDE, SIDE))
    p = look((clip / 1e3)[None]).softmax(1)[0, 0].item()
    assert given.probability() == pytest.approx(p)
    assert given.probability(given.log_odds) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"span": 0}, "span=0 for 9 frames; give 1 to 9"),
        ({"span": 10}, "span=10"),
        ({"fill": "blur"}, "fill='blur'; give one of freeze, mean, flat"),
        ({"target": 2}, "target=2 for a net of 2 classes"),
        ({"target": -1}, "target=-1"),
    ],
)
def test_wrong_arguments_are_refused(clip: Tensor, changes: dict, message: str):
    arguments: dict = {"target": 0, "span": 2} | changes
    with pytest.raises(InputError, match=message):
        occlusion(weighted(torch.ones(3, FRAMES, SIDE, SIDE)), clip, **arguments)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.rand(1, 3, FRAMES, SIDE, SIDE), r"shape \(1, 3, 9, 8, 8\)"),
        (torch.zeros(3, FRAMES, SIDE, SIDE, dtype=torch.uint8), "uint8"),
    ],
)
def test_a_clip_of_another_form_is_refused(clip: Tensor, message: str):
    with pytest.raises(InputError, match=message):
        _sizes(clip)  # the others' signatures are checked while testing


def test_a_net_in_training_mode_is_refused(clip: Tensor):
    with pytest.raises(InputError, match=r"call net\.eval"):
        occlusion(weighted(torch.ones(())).train(), clip, 0, 2)


def test_scores_that_are_no_numbers_are_refused(clip: Tensor):
    with pytest.raises(InputError, match="NaN or infinite"):
        drops(weighted(torch.tensor(float("nan"))), clip, 0, [clip])


def test_a_grid_finer_than_the_picture_is_refused(clip: Tensor):
    with pytest.raises(InputError, match="grid=9 for 8 pixels a side"):
        occluded_places(weighted(torch.ones(())), clip, 0, 9)


def test_no_draws_are_refused(clip: Tensor):
    with pytest.raises(InputError, match="num_draws=0"):
        order_effect(weighted(torch.ones(())), clip, 0, num_draws=0)
