"""The Triton function that is made of a formula."""

import hashlib
import linecache
import math
from functools import cache
from typing import Any

import triton.language as tl

from regkit.ops.formula import NUM_COEFFICIENTS, VOCABULARY, Formula
from regkit.ops.gpu import arithmetic
from regkit.ops.gpu.jit import jit
from regkit.ops.kernel_args import Param
from regkit.ops.translate import Dialect, translate

_FIRST = tl.constexpr(int(Param.FIRST))
_NUM = tl.constexpr(NUM_COEFFICIENTS)

_OWN_NAMES = {name: f"tl.{name}" for name in ("abs", "rsqrt", "sqrt", "where")}
_NAMESPACE = {
    "tl": tl,
    **{name: getattr(arithmetic, name) for name in VOCABULARY if name not in _OWN_NAMES},
}


def _number(value: float) -> str:
    if math.isinf(value):
        return 'float("inf")' if value > 0 else '(-float("inf"))'
    return repr(value) if value >= 0 else f"({value!r})"


TRITON = Dialect({name: _OWN_NAMES.get(name, name) for name in VOCABULARY}, _number)


@jit
def coefficients(param, place: tl.constexpr):
    """Load those of the formula at this place of the chain."""
    begin = param + _FIRST + place * _NUM
    a, b, c = tl.load(begin), tl.load(begin + 1), tl.load(begin + 2)
    return a, b, c, tl.load(begin + 3), tl.load(begin + 4)


def source_of(formula: Formula) -> str:
    """Return a function of entries, their steps, the learning rate and the coefficients.

    Without strength it returns the entries, whatever the step.
    """
    body = translate(formula, TRITON)
    v, second, *rest = body.parameters
    lines = [
        "def prox(x, step, lr, c):",
        f"    {v} = x",
        f"    {second} = {'lr' if formula.decoupled else 'step'}",
        *(f"    {name} = c[{k}]" for k, name in enumerate(rest)),
        *(f"    {name} = {text}" for name, text in body.assignments),
        f"    return tl.where(c[0] != 0.0, {body.result}, x)",
    ]
    return "\n".join(lines) + "\n"


@cache
def kernel_of(formula: Formula) -> Any:
    """Return the function, compiled or interpreted as the kernels that call it.

    Triton reads sources and tells functions apart by module and name: so what was never a file is
    shown to `inspect` as one, and the names hold a hash of the text.
    """
    source = source_of(formula)
    stem = formula.__name__.strip("_")
    mark = f"{stem}_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    source = source.replace("def prox(", f"def prox_{mark}(", 1)
    file = f"<regkit formula {mark}>"
    # No time of change: such an entry is never dropped.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace = {**_NAMESPACE, "__name__": f"regkit.ops.gpu.formula_{mark}"}
    exec(compile(source, file, "exec"), namespace)
    return jit(namespace[f"prox_{mark}"])
