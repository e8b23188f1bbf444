"""The files: torch.export programs, AOTInductor packages, and ONNX."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.inference.export.exported import (
    Exported,
    Run,
    quiet,
    ready,
    reason,
    scores_of,
    traced,
    written,
)

INPUT, OUTPUT = "clip", "scores"

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_program(model: nn.Module, example: Tensor, path: str | Path) -> Exported:
    """Write a program for any number of clips, which `torch.export.load` reads.

    example: clips as the model takes them, (batch, ...), on its device.
    path: a file that ends in .pt2; there is a file only when it gives the model's scores.
    Raises: InputError when the model cannot be traced, or the program gives other scores.
    """
    path = Path(path)
    copy = ready(model, example, path, ".pt2", "export_program")
    program = traced(copy, example, "export_program")

    def load(draft: Path) -> Run:
        return scores_of(torch.export.load(draft).module())

    return written(path, copy, example, lambda draft: torch.export.save(program, draft), load)


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

    def load(draft: Path) -> Run:
        return scores_of(torch._inductor.aoti_load_package(str(draft)))

    return written(path, copy, example, write, load)


def export_onnx(
    model: nn.Module, example: Tensor, path: str | Path, metadata: Mapping[str, Any] | None = None
) -> Exported:
    """Write an ONNX file for any number of clips: input "clip", output "scores".

    Large transformers take minutes.

    example: clips as the model takes them, (batch, ...), on its device.
    path: a file that ends in .onnx; there is a file only when it gives the model's scores.
    metadata: kept in the file, what is no text as JSON: classes, mean, std and the like.
    Raises: InputError when a package is missing, the model cannot be traced, one of its operations
        is unknown to ONNX, or onnxruntime gives other scores.
    """
    check_packages()
    path = Path(path)
    copy = ready(model, example, path, ".onnx", "export_onnx").cpu()
    example = example.cpu()
    if example.dtype == torch.bfloat16:
        raise InputError(
            "export_onnx got an example of torch.bfloat16, which onnxruntime takes from nobody in "
            "Python. Give model.float() and example.float()."
        )
    program = traced(copy, example, "export_onnx")
    try:
        with quiet():
            file: Any = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
    except Exception as error:
        raise InputError(
            f"export_onnx could not translate {type(model).__name__} to ONNX ({reason(error)}). "
            "export_program (format=program) keeps PyTorch's own operations."
        ) from error
    for node in file.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the Python code each comes from
    for key, value in (metadata or {}).items():
        file.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    return written(path, copy, example, file.save, _onnx_scores)


def check_packages() -> None:
    """Refuse to begin without the packages of the extra `export`.

    Raises: InputError.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"ONNX needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            'installed. pip install -e ".[export]"'
        )


def _onnx_scores(path: Path) -> Run:
    """Return what runs the file on as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(clip: Tensor) -> Tensor:
        scores: Any = session.run([OUTPUT], {INPUT: clip.numpy()})[0]
        return torch.from_numpy(scores)

    return run
