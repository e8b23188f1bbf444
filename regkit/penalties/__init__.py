"""Penalties: one file a penalty, one idea a file."""

from regkit.penalties.elastic_net import ElasticNet
from regkit.penalties.l1 import L1
from regkit.penalties.l2 import L2
from regkit.penalties.penalty import ActivationPenalty, Penalty, WeightPenalty
from regkit.penalties.temporal import TemporalSmoothness
from regkit.penalties.weight_decay import WeightDecay

__all__ = [
    "L1",
    "L2",
    "ActivationPenalty",
    "ElasticNet",
    "Penalty",
    "TemporalSmoothness",
    "WeightDecay",
    "WeightPenalty",
]
