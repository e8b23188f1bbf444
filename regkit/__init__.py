"""regkit: exact sparsity, structure and temporal smoothness for deep video models."""

from regkit.callback import Regularize
from regkit.errors import InputError
from regkit.regularizer import Regularizer
from regkit.sparsity.measure import density
from regkit.sparsity.remaining import remaining
from regkit.sparsity.shrink import shrink

__all__ = ["InputError", "Regularize", "Regularizer", "density", "remaining", "shrink"]
