"""Checkpoints of train.py: as models again, whole or shrunk, with what they were trained on."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from regkit.data.video_data import VideoData
from regkit.errors import InputError
from regkit.files import replacing
from regkit.lightning.video_classifier import VideoClassifier
from regkit.pruning.resize import restore, sizes
from regkit.training.allowed import check_recipe
from regkit.training.config import make

NAMES = ("shrunk", "debiased", "last")
_MADE = ("model", "optimizer", "data")  # the parts of a recipe that `load` makes
SIZES = "sizes"  # beside classes and recipe: the numbers in which the net differs from the recipe's


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A trained classifier and what made it.

    model: in eval mode, on the CPU; its `classes` name the columns of its scores.
    data: makes clips as in training. Not set up: its own videos need not be there.
    recipe: the configuration of the run.
    shrunk: whether the net is smaller than the recipe makes it.
    """

    path: Path
    model: VideoClassifier
    data: VideoData
    recipe: dict[str, Any]
    shrunk: bool


def load(path: str | Path, names: Sequence[str] = NAMES) -> TrainedRun:
    """Load a checkpoint of a run, or that of its folder.

    path: a file, or a run folder, of which the first that is there is taken of
        checkpoints/shrunk.ckpt, debiased.ckpt, last.ckpt.
    names: others, or in another order.
    Raises: InputError when there is none, it is none of train.py, or its recipe names what no
        recipe may (`allowed`).
    """
    file = _file(Path(path).expanduser(), names)
    checkpoint = _ours(file)
    made = checkpoint["hyper_parameters"]
    recipe, classes, smaller = made["recipe"], made["classes"], made.get(SIZES, {})
    check_recipe(recipe, f"ckpt={file}", _MADE)
    net = _net(recipe, len(classes))
    # Copies would be made, and others thrown out, where the recipe says.
    data = make(recipe["data"], cache="none", cache_root=None)
    if not isinstance(data, VideoData):
        raise InputError(f"ckpt={file} has a recipe of which no videos can be made.")
    model = VideoClassifier(net, classes, make(recipe["optimizer"]), recipe=recipe)
    try:
        restore(model, checkpoint["state_dict"], smaller)
    except InputError as error:
        raise InputError(f"{file} does not fit its own recipe: {error}") from error
    return TrainedRun(file, model.eval(), data, recipe, bool(smaller))


def start_from(model: VideoClassifier, path: Path) -> None:
    """Take the weights of another run's checkpoint, and of a shrunk one its sizes too.

    Raises: InputError when there is none, or it is of another model.
    """
    if not path.is_file():
        raise InputError(f"warm_start={path} was given, and there is no such file.")
    try:
        checkpoint = read(path)
        smaller = checkpoint["hyper_parameters"].get(SIZES, {})
        restore(model, checkpoint["state_dict"], smaller)
    except Exception as error:
        raise InputError(
            f"warm_start={path} does not fit this model ({' '.join(str(error).split())[:300]}). "
            "Give a checkpoint that train.py made of the same model and classes."
        ) from error
    model.hparams[SIZES] = smaller


def save_checkpoint(
    net: nn.Module, recipe: Mapping[str, Any], classes: Sequence[str], path: Path
) -> None:
    """Write a checkpoint with a smaller net than the recipe makes.

    `load` reads it, and train.py begins with it: warm_start=PATH.
    """
    whole = _net(recipe, len(classes))
    smaller = {f"net.{name}": value for name, value in sizes(whole, net).items()}
    checkpoint = {
        "state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()},
        "hyper_parameters": {"classes": list(classes), "recipe": dict(recipe), SIZES: smaller},
    }
    WholeFiles().save_checkpoint(checkpoint, path)


class WholeFiles(TorchCheckpointIO):
    """Write checkpoints whole or not at all, on the file system where they are to lie."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, and move it to its place."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft, draft.open("wb") as file:  # which says why it cannot write
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch goes on to close the file, and says of that
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU, if its bits are those that were written.

    torch writes a checksum (CRC-32) of each tensor, and does not look at it.
    Raises: whatever is wrong with the file.
    """
    with zipfile.ZipFile(path) as records:
        if (broken := records.testzip()) is not None:
            raise ValueError(f"the checksum of {broken} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def _net(recipe: Mapping[str, Any], num_classes: int) -> nn.Module:
    # The weights are in the checkpoint: those that training began with need not be there any more.
    options = {k: None if k == "pretrained" else v for k, v in recipe["model"].items()}
    net = make(options, num_classes=num_classes)
    if not isinstance(net, nn.Module):
        raise InputError("A recipe was given of which no net can be made.")
    return net


def _file(path: Path, names: Sequence[str]) -> Path:
    if path.is_file():
        return path
    for name in names:
        if (found := path / "checkpoints" / f"{name}.ckpt").is_file():
            return found
    what = "holds no checkpoints/last.ckpt" if path.is_dir() else "is no file"
    raise InputError(f"ckpt={path} {what}. Give a run folder of train.py, or a file of its.")


def _ours(path: Path) -> dict[str, Any]:
    try:
        checkpoint = read(path)
        made = checkpoint["hyper_parameters"]
        parts = [checkpoint["state_dict"], *(made["recipe"][part] for part in _MADE)]
        if not (isinstance(made["classes"], list) and all(isinstance(p, Mapping) for p in parts)):
            raise TypeError("a part is missing")
    except Exception as error:
        raise InputError(
            f"ckpt={path} is no checkpoint of train.py, or damaged ({one_line(error)}). Give a run "
            "folder, or checkpoints/last.ckpt in it."
        ) from error
    return checkpoint


def one_line(error: BaseException) -> str:
    """Return what an error is, and how its message begins."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
