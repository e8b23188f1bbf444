"""Compile kernels for sm_90, without a GPU, and read what the machine code is like."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from regkit.ops.gpu.entries import prox_entries
from regkit.ops.gpu.formula_kernel import kernel_of
from regkit.ops.gpu.groups import prox_groups
from regkit.ops.gpu.jit import OPTIONS
from regkit.ops.gpu.rows import prox_long, prox_tiles
from regkit.penalties import MCP, SCAD, Box, ElasticNet, WeightDecay

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGET = GPUTarget("cuda", 90, 32)
POINTERS = {
    "pointers": "*i64", "items": "*i64", "pieces": "*i64", "params": "*fp32", "skip": "*fp32",
    "scale": "*fp32",
}  # fmt: skip


def compiled(kernel: Any, num_warps: int, constants: dict[str, Any]) -> bytes:
    """Return the machine code; what is not a constant is a pointer or a 32-bit number."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else POINTERS.get(n, "i32") for n in names}
    aligned = {"pointers", "items", "pieces"}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (names.index(n),): [["tt.divisibility", 16]] for n in names if n in aligned
        },
    )  # fmt: skip
    options = {"num_warps": num_warps, **OPTIONS}
    return triton.compile(source, target=TARGET, options=options).asm["cubin"]


def measured(code: bytes, per_thread: int = 0) -> dict[str, float]:
    """Return registers, spills, vector accesses, instructions.

    per_thread: entries that a thread handles in one round of the loop with vector accesses.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        tell = [str(TOOLS / "cuobjdump"), "-res-usage", "-sass", file.name]
        text = subprocess.run(tell, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+)", text)
    assert usage is not None
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", text)
    program = [(int(at, 16), what) for at, what in lines]

    def count(pattern: str) -> int:
        return sum(bool(re.search(pattern, what)) for _, what in program)

    found: dict[str, float] = {
        "registers": int(usage[1]),
        "spills": count(r"\b(STL|LDL)\b"),
        "loads": count(r"\bLDG\.E\S*\.128"),
        "stores": count(r"\bSTG\.E\S*\.128"),
        "instructions": len(program),
    }
    if per_thread:
        found["per_entry"] = _loop(program) / per_thread
    return found


def _loop(program: list[tuple[int, str]]) -> int:
    """Return how many instructions the loop with vector stores has; all, where it is unrolled."""
    best = 0
    for at, what in program:
        jump = re.search(r"\bBRA\S* (?:\S+, )?(?:`\(\S+\)|0x([0-9a-f]+))", what)
        if jump is None or jump[1] is None or int(jump[1], 16) >= at:
            continue
        inside = [w for a, w in program if int(jump[1], 16) <= a <= at]
        if any(re.search(r"\bSTG\.E\S*\.128", w) for w in inside):
            best = max(best, len(inside))
    return best


F32, B16 = tl.float32, tl.bfloat16
ENTRIES = {
    "types": (F32,) * 5, "update": "adamw", "states": 2, "root": 0, "counted": True,
    "formula1": kernel_of(ElasticNet.kernel), "formula2": None, "gated": True, "block": 1024,
    "num_blocks": 4, "keeps": False,
}  # fmt: skip
# A step of AdamW under AMP, in its metric: all there is.
FULL = {"root": 1, "skip": "*", "scale": "*"}
NONE = {"update": "none", "states": 0}
VARIANTS = {
    "adamw elastic": (prox_entries, 4, {}),
    "adamw elastic, full": (prox_entries, 4, FULL),
    "amsgrad decay box, full": (
        prox_entries, 4, {**FULL, "states": 3, "root": 2, "formula1": kernel_of(WeightDecay.kernel),
         "formula2": kernel_of(Box.kernel)},
    ),
    "adamw mcp root": (prox_entries, 4, {"formula1": kernel_of(MCP.kernel), "root": 1}),
    "sgd elastic": (prox_entries, 4, {"update": "sgd", "states": 1}),
    "scad root": (prox_entries, 4, {**NONE, "formula1": kernel_of(SCAD.kernel), "root": 1}),
    "bfloat16": (prox_entries, 4, {"types": (B16, B16, F32, F32, F32)}),
    # All classes that r3d_18 has rows of: they share the registers of the largest.
    "tiles of r3d_18, adamw root": (
        prox_tiles, 8,
        {**FULL, "rows": (4, 1, 16, 8), "columns": (512, 2048, 128, 256), "classes": 4},
    ),
    "tile 1 x 2048 sgd": (
        prox_tiles, 8, {"update": "sgd", "states": 1, "rows": (1,), "columns": (2048,)},
    ),
    "long rows of r3d_18, adamw root": (prox_long, 16, {**FULL, "nums": (4, 7), "classes": 2}),
    "long 4 x 2048 adamw": (prox_long, 16, {"nums": (4,)}),
    "tile 1 x 2048 adamw root, kept whole": (
        prox_tiles, 8, {**FULL, "rows": (1,), "columns": (2048,), "keeps": True},
    ),
    "one group": (
        prox_groups, 8, {"metric": False, "groups": (1,), "entries": (2048,), "across": (0,)},
    ),
    "groups across root": (
        prox_groups, 8,
        {"root": 1, "metric": True, "groups": (8,), "entries": (128,), "across": (1,)},
    ),
}  # fmt: skip


def main(wanted: list[str]) -> None:
    """Print the figures of all variants, or of those named, as JSON."""
    found = {}
    for name, (kernel, num_warps, own) in VARIANTS.items():
        if wanted and name not in wanted:
            continue
        usual = {**ENTRIES, "classes": 1, "tile": 2048, "vector": 4, "skip": None, "scale": None}
        given = {**usual, **own}
        constants = {k: v for k, v in given.items() if k in kernel.arg_names and v != "*"}
        per_thread = 8 if kernel is prox_entries else 0
        found[name] = measured(compiled(kernel, num_warps, constants), per_thread)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
