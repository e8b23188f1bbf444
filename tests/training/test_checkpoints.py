"""Checkpoints as models again."""

import shutil
from pathlib import Path

import pytest
import torch

import regkit
from regkit.data.made import SyntheticMotion
from regkit.errors import InputError
from regkit.lightning.video_classifier import VideoClassifier
from regkit.models.tiny3d import Tiny3D
from regkit.training.checkpoints import load, save_checkpoint
from regkit.training.config import register

RECIPE = {
    "model": {"_target_": "regkit.models.tiny3d.Tiny3D", "channels": [8, 8, 8]},
    "data": {"_target_": "regkit.data.made.SyntheticMotion", "num_frames": 4, "size_px": 16},
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose net has three dead filters."""
    register()
    torch.manual_seed(0)
    net = Tiny3D(num_classes=2, channels=[8, 8, 8])
    model = VideoClassifier(net, ["a", "b"], torch.optim.AdamW, recipe=RECIPE)
    with torch.no_grad():
        for parameter in net.features[1].parameters():
            parameter[:3] = 0
    folder = tmp_path / "a run"
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder


def test_a_run_folder_gives_its_model_and_clips(run: Path):
    held = load(run)
    assert held.model.classes == ["a", "b"]
    assert not held.model.training
    assert not held.shrunk
    assert isinstance(held.data, SyntheticMotion)
    assert held.model(held.data.example()).shape == (1, 2)
    assert load(run / "checkpoints" / "last.ckpt").path == held.path


def test_the_shrunk_one_comes_first_and_gives_equal_scores(run: Path):
    held = load(run)
    small, _ = regkit.shrink(held.model.net, held.data.example(), timed=False)
    save_checkpoint(small, held.recipe, held.model.classes, run / "checkpoints" / "shrunk.ckpt")
    again = load(run)
    assert again.shrunk
    assert again.model.net.features[1][0].out_channels == 5
    clip = torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again.model(clip), held.model(clip), rtol=1e-5, atol=1e-6)
    assert not load(run, ("last",)).shrunk


def test_weights_to_begin_with_are_not_asked_for_again(run: Path):
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    model = {"_target_": "regkit.models.cnn_gru.CnnGru", "pretrained": "/gone.ckpt"}
    checkpoint["hyper_parameters"]["recipe"]["model"] = model
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match="does not fit its own recipe"):  # but not: no such file
        load(run)


def test_what_is_no_checkpoint_is_said(run: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"nope is no file\. Give a run folder"):
        load(tmp_path / "nope")
    with pytest.raises(InputError, match=r"holds no checkpoints/last\.ckpt"):
        load(tmp_path)
    bad = tmp_path / "bad.ckpt"
    bad.write_text("x")
    with pytest.raises(InputError, match=r"no checkpoint of train\.py"):
        load(bad)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError):
        load(run)
