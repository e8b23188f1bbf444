"""Compile C on the user's machine, once, and load it: the passes, and each formula by itself."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from regkit.files import replacing
from regkit.ops.formula import NUM_COEFFICIENTS, Formula
from regkit.ops.gate import Gate
from regkit.ops.kernel_args import NUM_PARAMS, Param
from regkit.ops.native.formula_source import FUNCTION, source_of

log = logging.getLogger("regkit.ops.native.launch")

HERE = Path(__file__).parent
SOURCES = (HERE / "entries.c", HERE / "groups.c")
HEADERS = (HERE / "arithmetic.h", HERE / "common.h", HERE / "tile.h")
# Groups up to this size are laid side by side, as many as there are lanes.
SHORT = 64
LANES = 16
# The types of weights, and what tells C of them.
TYPES = {
    torch.float32: (),
    torch.bfloat16: ("-DREGKIT_BFLOAT16",),
    torch.float64: ("-DREGKIT_FLOAT64",),
}
# No flag of -ffast-math that lets NaN vanish or terms change places; see arithmetic.h.
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Runs of a few entries are copied in place, not by a call.
    "-fno-tree-loop-distribute-patterns",
    "-fPIC",
    "-fopenmp",
    f"-I{HERE}",
    *(f"-DPARAM_{param.name}={param.value}" for param in Param),
    *(f"-DGATE_{bit.name}={bit.value}" for bit in Gate),
    f"-DNUM_PARAMS={NUM_PARAMS}",
    f"-DSHORT={SHORT}",
    f"-DLANES={LANES}",
    f"-DNUM_COEFFICIENTS={NUM_COEFFICIENTS}",
)
# Partial redundancies of selects are branches, with which GCC leaves a loop scalar.
FORMULA_FLAGS = ("-fno-tree-pre",)


@cache
def kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the compiled passes over weights of a type; None where they cannot be had.

    The log says why.
    """
    flags = (*FLAGS, *TYPES[dtype])

    def build(compiler: str, target: Path) -> None:
        objects = []
        for source in SOURCES:
            objects.append(str(target.with_name(f"{source.stem}.o")))
            _run([compiler, *flags, "-c", str(source), "-o", objects[-1]])
        _run([compiler, "-shared", *objects, "-o", str(target), *_openmp(), "-lm"])

    texts = [path.read_text() for path in (*SOURCES, *HEADERS)]
    library = _library("passes", texts, flags, build)
    return None if library is None else _typed(library)


@cache
def prox_address(formula: Formula, dtype: torch.dtype) -> int | None:
    """Return where the formula is, compiled for weights of a type; None where it cannot be had.

    The log says why.
    Raises: InputError for a formula that cannot be translated.
    """
    source = source_of(formula)
    # Weights of bfloat16 are computed with in float.
    flags = (*FLAGS, *FORMULA_FLAGS, *(TYPES[dtype] if dtype == torch.float64 else ()))

    def build(compiler: str, target: Path) -> None:
        file = target.with_suffix(".c")
        file.write_text(source)
        _run([compiler, *flags, "-shared", str(file), "-o", str(target), *_openmp(), "-lm"])

    texts = [source, (HERE / "arithmetic.h").read_text()]
    library = _library(formula.__name__.strip("_"), texts, flags, build)
    if library is None:
        return None
    return ctypes.cast(getattr(library, FUNCTION), ctypes.c_void_p).value


def _library(
    name: str, texts: Sequence[str], flags: Sequence[str], build: Callable[[str, Path], None]
) -> ctypes.CDLL | None:
    """Load what these texts compile to, None where that is not possible."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        log.info("No C compiler (cc, or the one named by CC): the prox is taken by torch.")
        return None
    try:
        parts = [*texts, *flags, *_openmp(), compiler, _target(compiler)]
        return _cached(f"{name}-{_digest(chr(0).join(parts).encode())}", compiler, build)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        log.info("C could not be compiled (%s), the prox is taken by torch: %s", name, said)
        return None


def _cached(name: str, compiler: str, build: Callable[[str, Path], None]) -> ctypes.CDLL:
    """Load a library from the user's cache; build it there, or where one may write.

    Its file is named for what it was made of and for what it holds. One that holds something else
    (cut short, damaged), or that belongs to somebody else, is not loaded.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(home) / "regkit"
    for path in folder.glob(f"{name}-*.so"):
        try:
            if _is_sound(path):
                return ctypes.CDLL(str(path))
            log.info("%s is not what was built, or not this user's: it is built again.", path)
            path.unlink()
        except OSError as error:
            log.info("%s cannot be used and is built again: %s", path, error)
    with tempfile.TemporaryDirectory() as place:
        built = Path(place) / "native.so"
        build(compiler, built)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / f"{name}-{_digest(built.read_bytes())}.so") as draft:
                shutil.copyfile(built, draft)
        except OSError as error:
            log.info("C is compiled anew in each process: %s", error)
        # Once loaded, the file may go.
        return ctypes.CDLL(str(built))


def _is_sound(path: Path) -> bool:
    """Say whether a library is this user's, and holds what its name says."""
    own = not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()
    return own and path.stem.endswith(f"-{_digest(path.read_bytes())}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@cache
def _target(compiler: str) -> str:
    """Return what a compiler predefines: its version, and the instructions of this very CPU."""
    asked = [compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


def _openmp() -> list[str]:
    """Return how to link OpenMP: torch's own library where it brings one, for one pool of threads.

    Then torch.set_num_threads holds, and no two pools fight for the cores.
    """
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(found[0]), f"-Wl,-rpath,{found[0].parent}"] if found else ["-fopenmp"]


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    integer, address, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
    common = [integer, number, address]
    entries, groups = library.regkit_entries, library.regkit_groups
    entries.argtypes, entries.restype = [*[address, integer] * 2, *common, integer], None
    groups.argtypes = [address, integer, address, integer, *common, integer, integer]
    groups.restype = integer
    library.regkit_count.argtypes, library.regkit_count.restype = [address, integer], None
    return library
