"""regkit: exact sparsity, structure and temporal smoothness for deep video models."""

from regkit.errors import InputError
from regkit.lightning.callback import RegularizerCallback
from regkit.optim.schedule import Schedule
from regkit.pruning.density import density
from regkit.pruning.remaining import remaining
from regkit.pruning.shrink import shrink
from regkit.regularizer.regularizer import Regularizer

__all__ = [
    "InputError",
    "Regularizer",
    "RegularizerCallback",
    "Schedule",
    "density",
    "remaining",
    "shrink",
]
