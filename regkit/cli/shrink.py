"""The verb `shrink`: a trained net without what its zeros make superfluous."""

import argparse
from pathlib import Path

import torch

from regkit.errors import InputError
from regkit.pruning.shrink import TOLERANCE, shrink
from regkit.training.allowed import check_no_address
from regkit.training.checkpoints import TrainedRun, load, save_checkpoint
from regkit.training.overrides import REQUIRED, options
from regkit.training.stages import NUM_CLIPS, clips

OPTIONS = {
    "ckpt": REQUIRED,
    "out": "",
    "fastest": False,
    "tolerance": TOLERANCE,
    "clips": NUM_CLIPS,
    "device": "cpu",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="ckpt=RUN",
        help="a run folder or a checkpoint; out=FILE (default: checkpoints/shrunk.ckpt of the "
        "run); fastest=true measures widths and keeps the fastest; tolerance=1e-5 of the largest "
        "output; clips=32 real ones that outputs are compared on; device=cuda measures there",
    )


def run(args: argparse.Namespace) -> None:
    """Shrink the net, print the report, and write a checkpoint.

    Raises: InputError when an option is wrong, or the outputs differ.
    """
    given = options(args.words, OPTIONS, "shrink")
    if given["clips"] < 0:
        raise InputError(f"shrink got clips={given['clips']}; give 0 or more.")
    held = load(given["ckpt"], ("debiased", "last"))
    out = Path(given["out"]).expanduser() if given["out"] else held.path.with_name("shrunk.ckpt")
    if out.resolve() == held.path.resolve():
        raise InputError(f"shrink got out={out}, the checkpoint that it reads; give another file.")
    if not out.parent.is_dir():
        raise InputError(f"shrink got out={out}, in a folder that is not there.")
    device = _device(given["device"])
    real = clips(held.data, given["clips"]) if given["clips"] and _is_there(held) else ()
    net, report = shrink(
        held.model.net.to(device),
        held.data.example().to(device),
        inputs=(clip.to(device) for clip in real),
        tolerance=given["tolerance"],
        fastest=given["fastest"],
    )
    save_checkpoint(net.cpu(), held.recipe, held.model.classes, out)
    print(f"{report}\n{out}")


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise InputError(f"shrink got device={name}; give cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("shrink got device=cuda, and PyTorch finds no GPU here.")
    return torch.device(name)


def _is_there(held: TrainedRun) -> bool:
    """Say whether the videos of the run are to be had, and tell where they are not."""
    try:
        check_no_address(held.recipe["data"], str(held.path))
        held.data.ready()
    except (InputError, OSError) as error:
        print(f"compared on random clips only, for the run's videos are not there: {error}")
        return False
    return True
