"""From a model to a file that stands for it: traced, written whole or not at all, compared."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from regkit.errors import InputError
from regkit.files import replacing
from regkit.structure.replica import check_runs, replica, unwrapped

# What PyTorch warns of while it exports, which nobody outside of it can mend.
_THEIRS = (
    # nn.RNNBase keeps its parameters in a list as well, and each trace fills a new one.
    (UserWarning, r"The tensor attributes? .*_flat_weights"),
    # Its own decomposition of GRU and LSTM calls what it has deprecated.
    (FutureWarning, "_check_is_size will be removed"),
    # Dynamo, which traces that decomposition, looks at .grad of whatever it meets.
    (UserWarning, r"The \.grad attribute of a Tensor that is not a leaf Tensor"),
    # PyTorch 2.11 asks for the kind of a tree in a way that it has deprecated itself.
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # PyTorch 2.11 reads a program's weights from bytes, and writes to none of them.
    (UserWarning, "The given buffer is not writable"),
)
BATCHES = (1, 2, 5)
TOLERANCE = 1e-4  # of the largest score; sums of float32 in another order differ by 1e-6

Run = Callable[[Tensor], Tensor]


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the warnings that are PyTorch's own affair."""
    with warnings.catch_warnings():
        for category, message in _THEIRS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


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


def ready(model: nn.Module, example: Tensor, path: Path, suffix: str, who: str) -> nn.Module:
    """Return a copy of the model in eval mode, when it takes the example and gives scores.

    Raises: InputError when it does not, or the file has another suffix.
    """
    if path.suffix != suffix:
        raise InputError(f"{who} got path={path}; give a file that ends in {suffix}.")
    if not (example.ndim >= 2 and len(example) and example.is_floating_point()):
        raise InputError(
            f"{who} got an example of shape {tuple(example.shape)} and {example.dtype}; give clips "
            "of floating point numbers, (batch, ...), with a batch of 1 or more."
        )
    copy = replica(unwrapped(model))
    check_runs(copy, example, who)
    with torch.no_grad():
        scores = copy(example)
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(example):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"{who} ran {type(model).__name__} on {len(example)} clips and got {shape}; a tensor "
            "(batch, classes) can be exported. Wrap the model so that it returns its scores alone."
        )
    return copy


def traced(model: nn.Module, example: Tensor, who: str) -> ExportedProgram:
    """Trace a model for batches of any size; all other sizes are the example's.

    The program holds neither the example nor the names of files.

    Raises: InputError, with PyTorch's reason, when it cannot be traced.
    """
    # Of one clip the batch would be taken for a constant.
    clips = example.new_zeros(2, *example.shape[1:])
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(model, (clips,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:
        raise InputError(
            f"{who} could not trace {type(model).__name__} for batches of any size "
            f"({reason(error)}). Its forward may ask for shapes, but not for values nor for the "
            "size of the batch."
        ) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths on this machine
    return program
