"""Compile the C kernels on the user's machine, once, and load them."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from regkit.ops.formulas import NUM_COEFFICIENTS
from regkit.ops.kernel_args import NUM_PARAMS, Param

log = logging.getLogger("regkit.ops.native.launch")

HERE = Path(__file__).parent
SOURCES = (HERE / "entries.c", HERE / "groups.c")
HEADERS = (HERE / "common.h", HERE / "tile.h")
# No flag of -ffast-math that lets NaN vanish or terms change places; see common.h.
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
    *(f"-DPARAM_{rule.name}={rule.value}" for rule in Param),
    f"-DNUM_PARAMS={NUM_PARAMS}",
    f"-DNUM_COEFFICIENTS={NUM_COEFFICIENTS}",
)


@cache
def kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels, None where they cannot be had; the log says why."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        log.info("No C compiler (cc, or the one named by CC): weights are swept by torch.")
        return None
    try:
        return _typed(_cached(compiler))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        log.info("The C kernels could not be built, weights are swept by torch: %s", said)
        return None


def _cached(compiler: str) -> ctypes.CDLL:
    """Load the library from the user's cache; build it there, or where one may write."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    path = Path(home) / "regkit" / f"{_fingerprint(compiler)}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            log.info("%s cannot be loaded and is built again.", path)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "native.so"
        _build(compiler, built)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=path.parent)
            os.close(handle)
            shutil.copyfile(built, beside)
            os.replace(beside, path)
        except OSError as error:
            log.info("The C kernels are built anew in each process: %s", error)
        # Once loaded, the file may go.
        return ctypes.CDLL(str(built))


def _fingerprint(compiler: str) -> str:
    """Name what the compiled code depends on."""
    parts = [path.read_text() for path in (*SOURCES, *HEADERS)]
    parts += [*FLAGS, *_openmp(), compiler, platform.machine(), platform.processor()]
    asked = [compiler, "--version"]
    parts.append(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text().splitlines()
        parts += sorted({line for line in lines if line.startswith(("flags", "Features", "model"))})
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _openmp() -> list[str]:
    """Return how to link OpenMP: torch's own library where it brings one, for one pool of threads.

    Then torch.set_num_threads holds, and no two pools fight for the cores.
    """
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(found[0]), f"-Wl,-rpath,{found[0].parent}"] if found else ["-fopenmp"]


def _build(compiler: str, target: Path) -> None:
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
        (library.regkit_formula, [ctypes.c_char_p], integer),
        (
            library.regkit_entries,
            [address, integer, address, integer, *[address] * 2, integer],
            None,
        ),
        (
            library.regkit_groups,
            [address, integer, *[address] * 2, integer, address, integer],
            integer,
        ),
    ):
        function.argtypes, function.restype = given, found
    return library
