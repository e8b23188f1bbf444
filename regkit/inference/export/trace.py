"""Trace a model for any number of clips."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from regkit.errors import InputError
from regkit.inference.export.exported import reason
from regkit.inference.export.quiet import quiet
from regkit.structure.replica import check_runs, replica, unwrapped


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
