"""regkit: exact sparsity, structure and temporal smoothness for deep video models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regkit import penalties
    from regkit.errors import InputError
    from regkit.lightning.callback import RegularizerCallback
    from regkit.optim.schedule import Schedule
    from regkit.pruning.density import density
    from regkit.pruning.remaining import remaining
    from regkit.pruning.resize import load_shrunk, save_shrunk
    from regkit.pruning.shrink import shrink
    from regkit.regularizer.regularizer import Regularizer

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Regularizer",
    "RegularizerCallback",
    "Schedule",
    "density",
    "load_shrunk",
    "penalties",
    "remaining",
    "save_shrunk",
    "shrink",
]

# Where each name lies. It is imported when it is first asked for: Lightning alone takes seconds.
_HOMES = {
    "InputError": "regkit.errors",
    "Regularizer": "regkit.regularizer.regularizer",
    "RegularizerCallback": "regkit.lightning.callback",
    "Schedule": "regkit.optim.schedule",
    "density": "regkit.pruning.density",
    "load_shrunk": "regkit.pruning.resize",
    "remaining": "regkit.pruning.remaining",
    "save_shrunk": "regkit.pruning.resize",
    "shrink": "regkit.pruning.shrink",
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
