"""AOTInductor packages: a model compiled to machine code, which runs without Python."""

from pathlib import Path

import torch
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.inference.export.exported import Exported, Run, reason, scores_of, written
from regkit.inference.export.quiet import quiet
from regkit.inference.export.trace import ready, traced


def export_package(model: nn.Module, example: Tensor, path: str | Path) -> Exported:
    """Compile a model for any number of clips; `torch._inductor.aoti_load_package` reads it.

    It takes a C++ compiler and about a minute. The code is made for the processor of this machine
    and for the device of the example.

    example: clips as the model takes them, (batch, ...), on its device.
    path: a file that ends in .pt2; there is a file only when it gives the model's scores.
    Raises: InputError when the model cannot be traced or compiled, or gives other scores then.
    """
    path = Path(path)
    copy = ready(model, example, path, ".pt2", "export_package")
    program = traced(copy, example, "export_package")

    def write(draft: Path) -> None:
        try:
            with quiet():
                torch._inductor.aoti_compile_and_package(program, package_path=str(draft))
        except Exception as error:
            raise InputError(
                f"export_package could not compile {type(model).__name__} ({reason(error)}). It "
                "needs a C++ compiler, such as g++; export_program and export_onnx do without."
            ) from error

    return written(path, copy, example, write, _load)


def _load(path: Path) -> Run:
    return scores_of(torch._inductor.aoti_load_package(str(path)))
