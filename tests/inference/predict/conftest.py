"""A checkpoint of an untrained net, and the videos it was made for."""

from pathlib import Path

import pytest
import torch
from predicted_films import CLASSES

from regkit.data.video_data import VideoData
from regkit.lightning.video_classifier import VideoClassifier
from regkit.training.checkpoints import TrainedRun, load
from regkit.training.config import make

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> VideoData:
    """Write the made videos: 16 frames at 8 fps, so 2 s, as long as a window."""
    data = make(
        {
            "_target_": "regkit.data.made.SyntheticMotion",
            **{"num_train": 6, "num_val": 6, "num_test": 6, "num_workers": 0},
            "root": str(tmp_path_factory.mktemp("made")),
        }
    )
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="session")
def run(made: VideoData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder of a run."""
    torch.manual_seed(1)
    recipe = {
        "data": {
            "_target_": "regkit.data.made.SyntheticMotion",
            **{"num_train": 6, "num_val": 6, "num_test": 6, "num_workers": 0},
        },
        "model": {"_target_": "regkit.models.tiny3d.Tiny3D"},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "_partial_": True},
    }
    net = make(recipe["model"], num_classes=len(CLASSES))
    model = VideoClassifier(net, CLASSES, make(recipe["optimizer"]), recipe=recipe)
    with torch.no_grad():
        list(model.parameters())[-2].mul_(300)  # an untrained net is sure of nothing
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    torch.save(
        {
            "state_dict": model.state_dict(),
            "hyper_parameters": {"classes": CLASSES, "recipe": recipe},
        },
        folder / "checkpoints" / "last.ckpt",
    )
    return folder


@pytest.fixture
def held(run: Path) -> TrainedRun:
    return load(run)


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder shared/data with real video is not beside this checkout")
    return SHARED
