"""The verb `export`: a checkpoint in, files out that other programs run."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from regkit.errors import InputError
from regkit.files import write_text
from regkit.inference.export.description import description, on_test_clips
from regkit.inference.export.exported import Exported, scores_of
from regkit.inference.export.formats import (
    check_packages,
    export_onnx,
    export_package,
    export_program,
)
from regkit.pruning.latency import latency
from regkit.training.checkpoints import TrainedRun, load
from regkit.training.overrides import REQUIRED, options

_FILES = {"onnx": "model.onnx", "program": "program.pt2", "package": "package.pt2"}
_DEFAULTS = {"ckpt": REQUIRED, "format": None, "out": "", "check": True}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="ckpt=RUN ...",
        help="ckpt=: run folder or checkpoint; format=[onnx,program,package] (default: the first "
        "two); out=: folder (default: export in the run folder); check=false: not on test clips",
    )
    parser.epilog = (
        "onnx: model.onnx, with model.json, which says how a video becomes its input. program: "
        "program.pt2, for torch.export.load. package: package.pt2, machine code for the processor "
        "at hand, which takes a C++ compiler and a minute. Each takes batches of any size, and is "
        "written only when it gives PyTorch's scores. Exit code 1: another class on a test clip."
    )


def run(args: argparse.Namespace) -> int:
    """Write the files and print how they compare; return 1 when a test clip gets another class.

    Raises: InputError when a word is wrong, or a file cannot be written.
    """
    given = options(args.overrides, _DEFAULTS, "export")
    formats = _formats(given["format"])
    if "onnx" in formats:
        check_packages()
    held = load(given["ckpt"])
    out = Path(given["out"]).expanduser() if given["out"] else _run_folder(held) / "export"
    files = [_write(held, name, out) for name in formats]
    _print_latencies(held, files)
    differs = False
    for name, file in zip(formats, files, strict=True):
        if name == "onnx" and given["check"]:
            differs = _differs(held, file)
    return int(differs)


def _formats(given: Any) -> list[str]:
    """Return what was asked for: one, or a list, in order."""
    if given is None:
        return ["onnx", "program"]
    formats = [str(name) for name in (given if isinstance(given, list) else [given])]
    if not formats or not set(formats) <= set(_FILES):
        raise InputError(
            f"export got format=[{','.join(formats)}]; give one or more of {', '.join(_FILES)}: "
            "format=[onnx,program]."
        )
    return list(dict.fromkeys(formats))


def _run_folder(held: TrainedRun) -> Path:
    folder = held.path.parent
    return folder.parent if folder.name == "checkpoints" else folder


def _write(held: TrainedRun, name: str, out: Path) -> Exported:
    net, example, path = held.model.net, held.data.example(), out / _FILES[name]
    if name == "program":
        return export_program(net, example, path)
    if name == "package":
        return export_package(net, example, path)
    about = description(held)
    file = export_onnx(net, example, path, about)
    write_text(out / "model.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    print(f"{out / 'model.json'}: how a video becomes the input of {path.name}")
    return file


def _print_latencies(held: TrainedRun, files: list[Exported]) -> None:
    runs: dict[str, Any] = {"PyTorch": scores_of(held.model.net)}
    runs |= {str(file.path): file.run for file in files}
    found = latency(runs, torch.randn_like(held.data.example()))
    ms = {name: 1e3 * time.median for name, time in found.items()}
    for file in files:
        print(
            f"{file.path}: {file.path.stat().st_size / 2**20:.2f} MiB, largest difference "
            f"{file.difference:.2g}, {ms[str(file.path)]:.3g} ms a clip "
            f"(PyTorch {ms['PyTorch']:.3g} ms)"
        )


def _differs(held: TrainedRun, file: Exported) -> bool:
    """Print on how many test clips the class is the same, or why nobody knows."""
    try:
        found = on_test_clips(held, file.run)
    except (InputError, OSError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        print(f"{file.path}: not checked on test clips: {why}.")
        return False
    print(f"{file.path}: {found}")
    return found.same < found.clips
