"""What turns a function into a kernel, and how kernels are compiled."""

import inspect
from collections.abc import Callable
from typing import Any

import triton

# Products and sums contract to one rounding. Triton 3.6 does so unless told, 3.9 warns, later ones
# do not.
OPTIONS = {"enable_fp_fusion": True}


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function, or a kernel with options, from its own source.

    Triton reads the globals of what it is given, which are those of the wrapper where shapes are
    checked while testing.
    """
    if function is None:
        return lambda kernel: jit(kernel, **options)
    return triton.jit(inspect.unwrap(function), **options)
