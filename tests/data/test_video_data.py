import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from regkit.data.augment import Augment
from regkit.data.made import SyntheticMotion
from regkit.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("made"))


def made(root: str, **options) -> SyntheticMotion:
    options = {"num_train": 12, "num_val": 7, "num_test": 6, "video_px": 16, **options}
    options = {"size_px": 16, "num_frames": 4, "batch_size": 4, "num_workers": 0, **options}
    data = SyntheticMotion(root=root, **options)
    data.prepare_data()
    data.setup()
    return data


def epoch(data: SyntheticMotion, number: int) -> list[dict]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # pyright: ignore[reportAttributeAccessIssue]  # ours
    return list(loader)


def test_workers_change_nothing(root):
    alone, two = made(root), made(root, num_workers=2)
    for ours, theirs in zip(epoch(alone, 3), epoch(two, 3), strict=True):
        assert torch.equal(ours["clip"], theirs["clip"])
        assert ours["path"] == theirs["path"]
        assert ours["draws"] == theirs["draws"]


def test_loading_leaves_the_global_generators_alone(root):
    data = made(root, augment=Augment(flip=0.5))
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
    for batch in epoch(data, 0):
        data.finish(batch, training=True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state(legacy=False)["state"]["key"] == before[1]).all()


def test_finish_scales_and_normalises(root):
    data = made(root, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    batch = epoch(data, 0)[0]
    done = data.finish(batch, training=True)
    assert done["clip"].dtype == torch.float32
    assert set(done) == {*("clip", "label", "path", "start_s", "end_s", "views", "clips_at_once")}
    for colour, (mean, std) in enumerate([(0.5, 0.5), (0.25, 1.0), (0.0, 2.0)]):
        expected = (batch["clip"][:, colour].double() / 255 - mean) / std
        torch.testing.assert_close(done["clip"][:, colour].double(), expected, rtol=0, atol=1e-6)


class Shade(nn.Module):
    """Draw one brightness and paint the whole clip with it."""

    def forward(self, video):
        return torch.full_like(video, int(torch.randint(256, ())))


def test_augmentation_is_one_for_a_clip_and_its_own(root):
    data = made(
        root,
        augment=Augment(more=[Shade()]),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        batch_size=12,
    )
    batch = epoch(data, 0)[0]
    done = data.finish(batch, training=True)["clip"].flatten(1)
    assert (done == done[:, :1]).all()
    assert len(done[:, 0].unique()) > 6
    torch.manual_seed(5)
    assert torch.equal(done, data.finish(batch, training=True)["clip"].flatten(1))
    again = data.finish(epoch(data, 1)[0], training=True)["clip"].flatten(1)
    assert not torch.equal(done[:, 0].sort().values, again[:, 0].sort().values)


def test_augmentation_acts_on_frames_in_training_only(root):
    data = made(root, augment=Augment(flip=1.0))
    batch = epoch(data, 0)[0]
    plain = data.finish(batch, training=False)["clip"]
    assert torch.equal(data.finish(batch, training=True)["clip"], plain.flip(-1))
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["clip"], plain)


def test_bad_file_is_named_once(root, tmp_path):
    data = made(str(tmp_path))
    bad = Path(data.videos().val[1].path)
    bad.write_bytes(b"")
    with pytest.warns(UserWarning, match=rf"SyntheticMotion leaves out .*{bad.name}") as caught:
        batches = [data.finish(batch, training=False) for batch in data.val_dataloader()]
    assert len(caught) == 1
    assert sum(len(batch["label"]) for batch in batches) == 6
    assert len(data.skipped) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in data.val_dataloader():
            data.finish(batch, training=False)


def test_empty_batch_passes(root):
    data = made(root, augment=Augment(more=[Shade()]))
    clip = torch.empty((0, 3, 4, 16, 16), dtype=torch.uint8)
    label = torch.empty(0, dtype=torch.int64)
    batch = {"clip": clip, "label": label, "path": [], "skipped": [], "draws": []}
    assert data.finish(batch, training=True)["clip"].shape == (0, 3, 4, 16, 16)


def test_differences_are_of_each_frame_from_the_one_before(root):
    plain, moving = made(root), made(root, modality="difference")
    batch = next(iter(plain.val_dataloader()))
    frames = plain.finish(batch, training=False)["clip"]
    changes = moving.finish(batch, training=False)["clip"]
    assert changes.shape == frames.shape
    assert not changes[:, :, 0].any()
    torch.testing.assert_close(changes[:, :, 3], frames[:, :, 3] - frames[:, :, 2])


def test_evaluation_is_in_order_and_whole(root):
    data = made(root)
    paths = [path for batch in data.val_dataloader() for path in batch["path"]]
    assert paths == [video.path for video in data.videos().val]


class Ranks:
    world_size, global_rank, training = 2, 1, False


def test_ranks_share_the_evaluation_without_repeats(root):
    data = made(root)
    data.trainer = Ranks()  # pyright: ignore[reportAttributeAccessIssue]  # all that is read
    batches = list(data.val_dataloader())
    assert [len(batch["label"]) for batch in batches] == [3]  # of 7; the fourth is padding
    assert batches[0]["path"] == [video.path for video in data.videos().val[1::2]]


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ({"num_frames": 0}, "1 or more"),
        ({"size_px": -1}, "1 or more"),
        ({"stride": 0}, "1 or more"),
        ({"batch_size": 0}, "1 or more"),
        ({"num_workers": -1}, "0 or more"),
        ({"worker_ram_mib": -1}, "0 or more"),
        ({"seed": -1}, "0 or more"),
        ({"sampling": "random"}, r"one of \['uniform', 'dense'\]"),
        ({"on_error": "ignore"}, r"one of \['skip', 'raise'\]"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "three positive numbers"),
        ({"num_train": 5}, "6 or more"),
        ({"video_frames": 1}, "2 or more"),
        ({"video_px": 31}, "even number"),
        ({"noise": -1.0}, "0 or more"),
        ({"num_distractors": -1}, "0 or more"),
        ({"label_noise": 1.5}, "from 0 to 1"),
    ],
)
def test_options_are_checked_at_the_door(option, allowed):
    (name,) = option
    with pytest.raises(InputError, match=rf"SyntheticMotion got {name}=.*{allowed}"):
        SyntheticMotion(**option)


def test_classes_need_setup(root):
    with pytest.raises(InputError, match=r"call prepare_data\(\) and setup\(\)"):
        _ = SyntheticMotion(root=root).num_classes
    assert made(root).num_classes == 6
