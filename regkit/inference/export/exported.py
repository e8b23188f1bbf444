"""A file that stands for a model: written whole or not at all, loaded again, and compared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.files import replacing
from regkit.inference.export.quiet import quiet

BATCHES = (1, 2, 5)
TOLERANCE = 1e-4  # of the largest score; sums of float32 in another order differ by 1e-6

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Exported:
    """A file that gives the scores of a model.

    run: the file, loaded again: scores of clips.
    difference: the largest between its scores and PyTorch's, on random clips in `BATCHES`.
    """

    path: Path
    run: Run
    difference: float


def written(
    path: Path,
    model: nn.Module,
    example: Tensor,
    write: Callable[[Path], object],
    load: Callable[[Path], Run],
) -> Exported:
    """Write a file and compare it with the model; only then does it take its place.

    write, load: of a draft beside the place.
    Raises: InputError, and nothing is left, when it cannot be written or loaded, or its scores are
        others than the model's.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            write(draft)
            run = _loaded(draft, load, path.name)
            difference = largest_difference(run, model, example, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}). Give another place.") from error
    return Exported(path, run, difference)


def _loaded(draft: Path, load: Callable[[Path], Run], name: str) -> Run:
    try:
        with quiet():
            return load(draft)
    except Exception as error:
        raise InputError(
            f"{name} was written, but does not load again ({reason(error)}). It was removed."
        ) from error


def largest_difference(run: Run, model: nn.Module, example: Tensor, name: str) -> float:
    """Return the largest difference between two ways to the scores of random clips.

    Raises: InputError when it is more than `TOLERANCE` of the largest score, or one of them fails.
    """
    generator = torch.Generator().manual_seed(0)
    expected, found = [], []
    for size in BATCHES:
        clip = torch.randn(size, *example.shape[1:], generator=generator).to(example)
        expected.append(scores_of(model)(clip))
        try:
            found.append(run(clip).to(example.device))
        except Exception as error:
            raise InputError(
                f"{name} does not take a batch of {size} clips ({reason(error)}). It was removed."
            ) from error
        if found[-1].shape != expected[-1].shape:
            raise InputError(
                f"{name} gives scores of shape {tuple(found[-1].shape)}, and the model of shape "
                f"{tuple(expected[-1].shape)}. It was removed."
            )
    largest = float((torch.cat(found) - torch.cat(expected)).abs().max())
    allowed = TOLERANCE * float(torch.cat(expected).abs().max())
    if not largest <= allowed:  # nor NaN
        raise InputError(
            f"{name} gives other scores than the model: they differ by up to {largest:.2g}, and "
            f"{allowed:.2g} are allowed ({TOLERANCE:g} of the largest score). It was removed."
        )
    return largest


def scores_of(model: Run) -> Run:
    """Return what runs a model without recording gradients."""

    def run(clip: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(clip)

    return run


def reason(error: BaseException) -> str:
    """Return what an error came from in one line, of 300 letters at most."""
    while error.__cause__ is not None:  # the exporters put advice before it
        error = error.__cause__
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"
