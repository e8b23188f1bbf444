"""torch.export programs: a model without its Python code."""

from pathlib import Path

import torch
from torch import Tensor, nn

from regkit.inference.export.exported import Exported, Run, scores_of, written
from regkit.inference.export.trace import ready, traced


def export_program(model: nn.Module, example: Tensor, path: str | Path) -> Exported:
    """Write a program for any number of clips, which `torch.export.load` reads.

    example: clips as the model takes them, (batch, ...), on its device.
    path: a file that ends in .pt2; there is a file only when it gives the model's scores.
    Raises: InputError when the model cannot be traced, or the program gives other scores.
    """
    path = Path(path)
    copy = ready(model, example, path, ".pt2", "export_program")
    program = traced(copy, example, "export_program")
    return written(path, copy, example, lambda draft: torch.export.save(program, draft), _load)


def _load(path: Path) -> Run:
    return scores_of(torch.export.load(path).module())
