"""regkit: exact sparsity, structure and temporal smoothness for deep video models."""

from regkit.callback import RegularizerCallback
from regkit.errors import InputError
from regkit.optim.schedule import Schedule
from regkit.regularizer import Regularizer
from regkit.sparsity.measure import density
from regkit.sparsity.remaining import remaining
from regkit.sparsity.shrink import shrink

__all__ = [
    "InputError",
    "Regularizer",
    "RegularizerCallback",
    "Schedule",
    "density",
    "remaining",
    "shrink",
]
