"""The C that is made of a formula: a function over a block of entries."""

import math

from regkit.ops.formula import VOCABULARY, Formula
from regkit.ops.translate import Dialect, translate

FUNCTION = "regkit_prox"
_OWN_NAMES = {"abs": "fabs", "rsqrt": "inverse_root"}


def _number(value: float) -> str:
    if math.isinf(value):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    return f"((real){value!r})"


C = Dialect({name: _OWN_NAMES.get(name, name) for name in VOCABULARY}, _number)


def source_of(formula: Formula) -> str:
    """Return a translation unit whose `regkit_prox` writes the prox of n entries.

    Without strength nothing is done, whatever the step.
    """
    body = translate(formula, C)
    _, _, *coefficients = body.parameters
    names = dict.fromkeys(name for name, _ in body.assignments)
    own = [name for name in names if name not in body.parameters]
    lines = [
        '#include "arithmetic.h"',
        "",
        f"static inline real prox({', '.join(f'real {name}' for name in body.parameters)}) {{",
        *(f"    (void){name};" for name in body.parameters),
        *(f"    real {name};" for name in own),
        *(f"    {name} = {text};" for name, text in body.assignments),
        f"    return {body.result};",
        "}",
        "",
        f"void {FUNCTION}(real *restrict x, const real *restrict step, int64_t n, real lr,",
        "                 const double *c) {",
        "    (void)step, (void)lr;",
        f"    real {', '.join(f'{name} = (real)c[{k}]' for k, name in enumerate(coefficients))};",
        f"    if ({coefficients[0]} == 0) return;",
        "#pragma omp simd",
        "    for (int64_t i = 0; i < n; i++) {",
        f"        real v = x[i], second = {'lr' if formula.decoupled else 'step[i]'};",
        f"        real found = prox({', '.join(['v', 'second', *coefficients])});",
        "        x[i] = unless_nan(found, v, second);",
        "    }",
        "}",
    ]
    return "\n".join(lines) + "\n"
