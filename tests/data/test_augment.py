import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from regkit.data.augment import Augment
from regkit.errors import InputError

CLASSES = ["left", "right", "up"]
DRAWS = [11, 2**63 - 1, 12, 13, 14, 15]


def clips(num: int = 6, frames: int = 3, height: int = 16, width: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = (num, 3, frames, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def still(num: int = 6) -> Tensor:
    """Make clips whose frames are all one picture, and all clips the same."""
    return clips(1, 1).expand(num, 3, 4, 16, 20).clone()


def labels(num: int = 6) -> Tensor:
    return torch.arange(num) % len(CLASSES)


def call(augment: Augment, clip: Tensor, draws: list[int] | None = None) -> tuple[Tensor, Tensor]:
    draws = DRAWS[: len(clip)] if draws is None else draws
    return augment(clip, labels(len(clip)), draws, len(CLASSES))


EACH = {
    "zoom": (
        Augment(zoom=0.3),
        lambda: v2.RandomResizedCrop((16, 20), (0.3, 1.0), (0.9375, 5 / 3)),
    ),
    "flip": (Augment(flip=0.5), lambda: v2.RandomHorizontalFlip(0.5)),
    "colour": (Augment(colour=0.8), lambda: v2.ColorJitter(0.8, 0.8, 0.8, 0.2)),
    "rand_augment": (Augment(rand_augment=2), lambda: v2.RandAugment(2, 9)),
    "erase": (Augment(erase=0.5), lambda: v2.RandomErasing(0.5)),
    "more": (Augment(more=[v2.RandomRotation(30)]), lambda: v2.RandomRotation(30)),
}
ALL = Augment(
    zoom=0.5, flip=0.5, colour=0.4, rand_augment=1, erase=0.5, more=[v2.RandomRotation(9)]
)


@pytest.mark.parametrize("name", EACH)
def test_a_clip_is_changed_as_v2_changes_each_of_its_frames(name):
    augment, oracle = EACH[name]
    changed, label = call(augment, clips())
    assert torch.equal(label, labels())
    for ours, clip, draw in zip(changed, clips(), DRAWS, strict=True):
        for number in range(3):
            torch.manual_seed(draw)  # the same parameters for one picture at a time
            picture = oracle()(tv_tensors.Image(clip[:, number]))
            assert torch.equal(ours[:, number], picture.as_subclass(Tensor))
    assert not torch.equal(changed, clips())


@pytest.mark.parametrize("name", EACH)
def test_frames_share_their_parameters_and_clips_do_not(name):
    changed, _ = call(EACH[name][0], still())
    assert (changed == changed[:, :, :1]).all()
    assert len({one.numpy().tobytes() for one in changed}) > 1


def test_transforms_follow_each_other_in_the_order_of_the_fields():
    changed, _ = call(ALL, clips())
    for ours, clip, draw in zip(changed, clips(), DRAWS, strict=True):
        torch.manual_seed(draw)
        theirs = tv_tensors.Video(clip.transpose(0, 1))
        for transform in (
            v2.RandomResizedCrop((16, 20), (0.5, 1.0), (0.9375, 5 / 3)),
            v2.RandomHorizontalFlip(0.5),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
            v2.RandAugment(1, 9),
            v2.RandomErasing(0.5),
            v2.RandomRotation(9),
        ):
            theirs = transform(theirs)
        assert torch.equal(ours, theirs.as_subclass(Tensor).transpose(0, 1))


def test_a_flip_mirrors_left_and_right():
    changed, _ = call(Augment(flip=1), clips())
    assert (changed.numpy() == np.flip(clips().numpy(), axis=-1)).all()


@given(st.lists(st.integers(0, 2**63 - 1), min_size=6, max_size=6))
def test_classes_that_know_their_side_are_never_mirrored(draws):
    augment = Augment(flip=1.0, no_flip_classes=["left", "right"]).for_classes(CLASSES)
    changed, _ = call(augment, clips(), draws)
    mirrored = clips().flip(-1)
    for number, label in enumerate(labels().tolist()):
        assert torch.equal(changed[number], (mirrored if label == 2 else clips())[number])


def test_rand_augment_mirrors_nothing():
    # A picture that is bright on the left only stays so under every operation, however mild.
    picture = torch.full((1, 3, 1, 32, 32), 60, dtype=torch.uint8)
    picture[..., :16] = 190
    augment = Augment(rand_augment=1, magnitude=2)
    for draw in range(300):
        changed, _ = call(augment, picture, [draw])
        left, right = changed[..., 8:14].float().mean(), changed[..., 18:24].float().mean()
        assert left > right


def test_a_zoom_keeps_at_least_its_share():
    # Each pixel holds its own place, so that the corners tell what was cut.
    rows, columns = torch.meshgrid(torch.arange(0, 240, 2), torch.arange(0, 160, 2), indexing="ij")
    clip = torch.stack([rows, columns, columns]).to(torch.uint8)[None, :, None]
    shares, ratios = [], []
    for draw in range(60):
        changed = call(Augment(zoom=0.4), clip, [draw])[0][0, :, 0].float()
        assert changed.shape == (3, 120, 80)
        height = (changed[0].max() - changed[0].min()) / 2 + 1
        width = (changed[1].max() - changed[1].min()) / 2 + 1
        shares.append(float(height * width) / (120 * 80))
        ratios.append(float(width / 80 / (height / 120)))
    assert min(shares) > 0.4 - 0.04
    assert min(shares) < 0.5
    assert max(shares) > 0.85
    assert 0.7 < min(ratios) < 0.9
    assert 1.1 < max(ratios) < 1.4


def share_of(label: Tensor) -> float:
    """Read the share that a batch's clips keep of themselves; neighbours differ in class."""
    return float(label[0, labels()[0]])


@pytest.mark.parametrize("draw", range(5))
def test_mixup_is_the_mean_of_a_clip_and_the_one_before(draw):
    changed, label = call(Augment(mixup=0.8), clips(), [draw, *DRAWS[1:]])
    lam = share_of(label)
    assert 0 < lam < 1
    pixels = clips().double().numpy() / 255
    expected = lam * pixels + (1 - lam) * np.roll(pixels, 1, axis=0)
    assert changed.dtype == torch.float32
    np.testing.assert_allclose(changed.numpy(), expected, rtol=0, atol=1e-6)
    hot = np.eye(3)[labels().numpy()]
    expected = lam * hot + (1 - lam) * np.roll(hot, 1, axis=0)
    np.testing.assert_allclose(label.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("draw", range(5))
def test_cutmix_takes_one_box_of_all_frames_from_the_clip_before(draw):
    changed, label = call(Augment(cutmix=1.0), clips(), [draw, *DRAWS[1:]])
    assert changed.dtype == torch.uint8
    foreign = (changed != clips()).any(dim=1)  # by chance a pixel may equal its neighbour's
    box = foreign.flatten(0, 1).any(dim=0)
    rows, columns = box.any(dim=1).nonzero(), box.any(dim=0).nonzero()
    area = 0
    expected = clips()
    if len(rows):
        cut = np.s_[..., int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        expected[cut] = clips().roll(1, 0)[cut]
        area = len(rows) * len(columns)
    assert torch.equal(changed, expected)
    assert share_of(label) == pytest.approx(1 - area / (16 * 20), abs=1e-6)


def test_shares_of_mixup_follow_their_distribution():
    shares = [share_of(call(Augment(mixup=0.3), clips(2, 1), [draw, 0])[1]) for draw in range(1500)]
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); bounds are four standard errors.
    assert abs(np.mean(shares) - 0.5) < 4 * math.sqrt(1 / 6.4 / 1500)
    assert np.var(shares) == pytest.approx(1 / 6.4, rel=0.08)


def test_a_coin_says_whether_a_batch_is_mixed_or_cut():
    dtypes = [
        call(Augment(mixup=0.8, cutmix=1.0), clips(2, 1), [draw, 0])[0].dtype for draw in range(400)
    ]
    assert 160 < dtypes.count(torch.uint8) < 240


def test_mixing_does_not_repeat_the_draws_of_the_first_clip():
    torch.manual_seed(DRAWS[0])
    same = float(torch.distributions.Beta(torch.tensor([0.8]), torch.tensor([0.8])).sample())
    assert share_of(call(Augment(mixup=0.8), clips())[1]) != pytest.approx(same)


def test_mixing_follows_the_other_changes():
    alone, _ = call(ALL, clips())
    both, label = call(Augment(**{**vars(ALL), "cutmix": 1.0}), clips())
    foreign = (both != alone).any(dim=1).flatten(0, 1).any(dim=0)
    assert label.dtype == torch.float32
    assert not foreign.all()
    before = alone.roll(1, 0)
    assert torch.equal(both[..., foreign], before[..., foreign])


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.1, "cutmix": 1}])
def test_one_clip_mixes_with_itself_and_none_with_nothing(options):
    for draw in range(5):
        changed, label = call(Augment(**options), clips(1), [draw])
        changed = changed if changed.dtype == torch.uint8 else changed * 255
        torch.testing.assert_close(changed.float(), clips(1).float(), rtol=0, atol=1e-3)
        torch.testing.assert_close(label, torch.tensor([[1.0, 0.0, 0.0]]))
    changed, label = call(Augment(**{**vars(ALL), **options}), clips(0))
    assert changed.shape == (0, 3, 3, 16, 20)
    assert label.shape == (0, 3)
    assert label.dtype == torch.float32


def test_nothing_is_changed_by_default():
    for augment in (Augment(), Augment(no_flip_classes=[0], magnitude=3)):
        clip, label = clips(), labels()
        changed, kept = augment(clip, label, DRAWS, 3)
        assert changed is clip
        assert kept is label


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.8, "cutmix": 1.0}])
def test_draws_alone_decide(mixing):
    augment = Augment(**{**vars(ALL), **mixing})
    before = clips()
    first, _ = call(augment, before)
    assert torch.equal(before, clips())  # not in place
    torch.rand(7)
    again, _ = call(augment, clips())
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    other, _ = call(augment, clips(), [draw - 1 for draw in DRAWS])
    assert other.dtype != first.dtype or not torch.equal(other, first)


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.8, "cutmix": 1.0}])
def test_the_global_generator_is_left_alone(mixing):
    torch.manual_seed(77)
    state = torch.get_rng_state()
    call(Augment(**{**vars(ALL), **mixing}), clips())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_clip_does_not_depend_on_its_batch():
    whole, _ = call(ALL, clips())
    alone = ALL(clips()[2:3], labels()[2:3], DRAWS[2:3], 3)[0]
    assert torch.equal(whole[2:3], alone)


def test_own_transforms_may_resize_and_return_fractions():
    more = [v2.Resize((8, 8)), v2.RandomApply([v2.ToDtype(torch.float32, scale=True)], p=0.5)]
    changed, _ = call(Augment(more=more), clips())
    assert changed.shape == (6, 3, 3, 8, 8)
    assert changed.dtype == torch.float32
    oracle = v2.functional.resize(clips().flatten(1, 2), [8, 8]).reshape(6, 3, 3, 8, 8)
    # resizing bytes and then scaling: within one grey level
    torch.testing.assert_close(changed, oracle.float() / 255, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize(
    "more",
    [
        v2.RandomChoice([v2.Resize((8, 8)), v2.Resize((9, 9))]),
        lambda video: None,
        lambda video: video[:, :1],
    ],
)
def test_own_transforms_must_return_equal_clips(more):
    with pytest.raises(InputError, match="more"):
        call(Augment(more=[more]), clips())


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "zoom": (0, -1, 1.2, math.nan, True, "all", None),
        "flip": (-0.1, 1.5, math.nan, True, "half"),
        "erase": (-0.1, 2, True),
        "colour": (-0.1, 1.1, math.inf),
        "rand_augment": (-1, 1.5, True, math.inf),
        "magnitude": (-1, 31, 9.0),
        "mixup": (-0.2, math.inf, math.nan, "on", True),
        "cutmix": (-0.2, math.inf),
        "no_flip_classes": ("left", 3),
        "more": ("flip", ["flip"], v2.Identity()),
    }.items(),
)
def test_values_out_of_range_are_refused(name, values):
    for value in values:
        given = object.__new__(Augment)  # past the check of types, which only tests have
        vars(given).update(vars(Augment()) | {name: value})
        with pytest.raises(InputError, match=f"Augment got {name}="):
            given.__post_init__()


def test_names_of_classes_become_labels():
    augment = Augment(flip=0.5, no_flip_classes=["right", "left"]).for_classes(CLASSES)
    assert augment == Augment(flip=0.5, no_flip_classes={0, 1})
    with pytest.raises(InputError, match=r"'rihgt'.*'left', 'right', 'up'"):
        Augment(no_flip_classes=["rihgt"]).for_classes(CLASSES)
    with pytest.raises(InputError, match="quotes"):  # YAML reads the class "1" as a number
        Augment(no_flip_classes=[1]).for_classes(["0", "1"])
    with pytest.raises(InputError, match="for_classes"):
        call(Augment(flip=0.5, no_flip_classes=["left"]), clips())
