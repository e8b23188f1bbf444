"""What a run folder says about a run: whether it is over, how far it came, what made it."""

import json
import logging
import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from regkit.errors import InputError
from regkit.files import write_text
from regkit.training.config import AUTO, check_unchanged, only_watches

# What Hydra writes before a job begins, beside its log.
_OF_HYDRA = {"config.yaml", "hydra.yaml", "overrides.yaml"}


class RunFolder:
    """Keep what a run leaves in its folder, so that it goes on where it was stopped.

    Stages: trained (`checkpoints/last.ckpt`, epoch by epoch), tested (`tested.json`), and, with all
    that was asked for, done (`summary.json`). A job that failed leaves `failed.txt`.
    """

    def __init__(self, path: Path, ckpt_path: str | None = None) -> None:
        self.path = path
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        if ckpt_path is not None:
            self.checkpoint = Path(ckpt_path).expanduser()

    def held(self) -> dict[str, Any] | None:
        """Read the checkpoint to go on from; None where a run begins.

        Raises: InputError when it is none of ours.
        """
        if not self.checkpoint.is_file():
            return None
        try:
            checkpoint = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            checkpoint["hyper_parameters"]["recipe"]
        except Exception as error:
            raise InputError(
                f"ckpt_path={self.checkpoint} is no checkpoint of train.py "
                f"({type(error).__name__}); give the file checkpoints/last.ckpt of a run folder."
            ) from error
        return checkpoint

    def summary(self, recipe: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the summary of this very run, if it is done."""
        path = self.path / "summary.json"
        if not path.is_file() or _effective(recipe) != _effective(old):
            return None
        return json.loads(path.read_text())

    def tested(self, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what is known of a run that was stopped after its test."""
        path = self.path / "tested.json"
        if not path.is_file():
            return None
        held = json.loads(path.read_text())
        return held["summary"] if held["recipe"] == _effective(recipe) else None

    def keep_tested(self, summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
        """Keep what was measured, for a run that is stopped from here on."""
        held = {"recipe": _effective(recipe), "summary": summary}
        write_text(self.path / "tested.json", json.dumps(held))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, last of all."""
        write_text(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")
        (self.path / "tested.json").unlink(missing_ok=True)

    def fail(self, error: Exception) -> None:
        """Leave word of what stopped the job."""
        self.path.mkdir(parents=True, exist_ok=True)
        lines = "".join(traceback.format_exception(error))
        (self.path / "failed.txt").write_text(f"{type(error).__name__}: {error}\n\n{lines}")

    def is_fresh(self) -> bool:
        """Say whether there is nothing yet but what Hydra leaves when a job begins."""
        config, here = self.path / "config", Path.cwd()
        names = {entry.name for entry in self.path.iterdir()}
        inner = {entry.name for entry in config.iterdir()} if config.is_dir() else set()
        ours = names <= {"config", "train.log"} and inner <= _OF_HYDRA
        return ours and not here.is_relative_to(self.path.absolute())

    def is_trained(self) -> bool:
        """Say whether there is a checkpoint of this run."""
        return any(self.path.rglob("*.ckpt"))

    def discard(self) -> None:
        """Remove all that a run has left which was refused, and the folder above if it is empty.

        Only of a run whose folder was fresh when it began.
        """
        logging.shutdown()  # Hydra's log file lies within
        shutil.rmtree(self.path)
        above = self.path.absolute().parent
        if not Path.cwd().is_relative_to(above) and not any(above.iterdir()):
            above.rmdir()

    def begin(self) -> None:
        """Take away the word of an earlier failure."""
        (self.path / "failed.txt").unlink(missing_ok=True)


def adopt(config: DictConfig, old: Mapping[str, Any]) -> None:
    """Take over the strengths that the run was given, where they are to be found again.

    Raises: InputError when the old run was made by another configuration.
    """
    for name, options in config.penalty.items():
        if options.get("lam") == AUTO and name in old["penalty"]:
            options.lam = old["penalty"][name]["lam"]
    if config.lam == AUTO:
        config.lam = old["lam"]
    recipe = OmegaConf.to_container(config, resolve=True)
    assert isinstance(recipe, dict)
    check_unchanged(old, {str(key): value for key, value in recipe.items()})


def _effective(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a recipe what changes no weight, in the form in which JSON returns it."""
    kept = {key: value for key, value in recipe.items() if not only_watches(key)}
    trainer = recipe["trainer"].items()
    kept["trainer"] = {k: v for k, v in trainer if not only_watches(f"trainer.{k}")}
    return json.loads(json.dumps(kept))
