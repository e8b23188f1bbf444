"""Compile C on the user's machine, once, and load it: the passes, and each formula by itself."""

import ctypes
import hashlib
import logging
import os
import platform
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
    f"-DNUM_COEFFICIENTS={NUM_COEFFICIENTS}",
)
# Partial redundancies of selects are branches, with which GCC leaves a loop scalar.
FORMULA_FLAGS = ("-fno-tree-pre",)


@cache
def kernels() -> ctypes.CDLL | None:
    """Return the compiled passes, None where they cannot be had; the log says why."""
    library = _library("passes", [path.read_text() for path in (*SOURCES, *HEADERS)], _build_passes)
    return None if library is None else _typed(library)


@cache
def prox_address(formula: Formula) -> int | None:
    """Return where the compiled formula is, None where it cannot be had; the log says why.

    Raises: InputError for a formula that cannot be translated.
    """
    source = source_of(formula)

    def build(compiler: str, target: Path) -> None:
        file = target.with_suffix(".c")
        file.write_text(source)
        flags = (*FLAGS, *FORMULA_FLAGS, "-shared")
        _run([compiler, *flags, str(file), "-o", str(target), *_openmp(), "-lm"])

    texts = [source, (HERE / "arithmetic.h").read_text()]
    library = _library(formula.__name__.strip("_"), texts, build)
    if library is None:
        return None
    return ctypes.cast(getattr(library, FUNCTION), ctypes.c_void_p).value


def _library(
    name: str, texts: Sequence[str], build: Callable[[str, Path], None]
) -> ctypes.CDLL | None:
    """Load what these texts compile to, None where that is not possible."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        log.info("No C compiler (cc, or the one named by CC): the prox is taken by torch.")
        return None
    try:
        return _cached(compiler, f"{name}-{_fingerprint(compiler, texts)}.so", build)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        log.info("C could not be compiled (%s), the prox is taken by torch: %s", name, said)
        return None


def _cached(compiler: str, name: str, build: Callable[[str, Path], None]) -> ctypes.CDLL:
    """Load a library from the user's cache; build it there, or where one may write."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    path = Path(home) / "regkit" / name
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            log.info("%s cannot be loaded and is built again.", path)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "native.so"
        build(compiler, built)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as draft:
                shutil.copyfile(built, draft)
        except OSError as error:
            log.info("C is compiled anew in each process: %s", error)
        # Once loaded, the file may go.
        return ctypes.CDLL(str(built))


def _fingerprint(compiler: str, texts: Sequence[str]) -> str:
    """Name what compiled code depends on."""
    parts = [*texts, *FLAGS, *FORMULA_FLAGS, *_openmp(), *_machine(compiler)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@cache
def _machine(compiler: str) -> tuple[str, ...]:
    """Name the compiler and what -march=native stands for."""
    asked = [compiler, "--version"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    parts = [compiler, version, platform.machine(), platform.processor()]
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text().splitlines()
        parts += sorted({line for line in lines if line.startswith(("flags", "Features", "model"))})
    return tuple(parts)


def _openmp() -> list[str]:
    """Return how to link OpenMP: torch's own library where it brings one, for one pool of threads.

    Then torch.set_num_threads holds, and no two pools fight for the cores.
    """
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(found[0]), f"-Wl,-rpath,{found[0].parent}"] if found else ["-fopenmp"]


def _build_passes(compiler: str, target: Path) -> None:
    objects = []
    for source in SOURCES:
        objects.append(str(target.with_name(f"{source.stem}.o")))
        _run([compiler, *FLAGS, "-c", str(source), "-o", objects[-1]])
    _run([compiler, "-shared", *objects, "-o", str(target), *_openmp(), "-lm"])


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    integer, address = ctypes.c_int64, ctypes.c_void_p
    for function, given, found in (
        (library.regkit_entries, [address, integer, address, integer, address, integer], None),
        (
            library.regkit_groups,
            [address, integer, *[address] * 2, integer, integer],
            integer,
        ),
    ):
        function.argtypes, function.restype = given, found
    return library
