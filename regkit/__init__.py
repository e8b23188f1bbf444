"""regkit: exact sparsity, structure and temporal smoothness for deep video models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regkit import penalties
    from regkit.callback import RegularizerCallback
    from regkit.errors import InputError
    from regkit.optim.schedule import Schedule
    from regkit.regularizer import Regularizer
    from regkit.sparsity.measure import density
    from regkit.sparsity.remaining import remaining
    from regkit.sparsity.shrink import shrink

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Regularizer",
    "RegularizerCallback",
    "Schedule",
    "density",
    "penalties",
    "remaining",
    "shrink",
]

# Where each name lies. It is imported when it is first asked for: Lightning alone takes seconds.
_HOMES = {
    "InputError": "regkit.errors",
    "Regularizer": "regkit.regularizer",
    "RegularizerCallback": "regkit.callback",
    "Schedule": "regkit.optim.schedule",
    "density": "regkit.sparsity.measure",
    "remaining": "regkit.sparsity.remaining",
    "shrink": "regkit.sparsity.shrink",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and keep it."""
    if name == "penalties":
        return import_module("regkit.penalties")
    if name not in _HOMES:
        raise AttributeError(f"module 'regkit' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    """List what there is, imported or not."""
    return sorted({*globals(), *__all__})
