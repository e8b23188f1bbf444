"""Penalties: one file a penalty, with its value, its prox, and the formula of its kernels.

Enters: a strength and options. Leaves: frozen dataclasses. Never: a model or an optimizer.
"""

from regkit.penalties.activation_l1 import ActivationL1
from regkit.penalties.box import Box
from regkit.penalties.elastic_net import ElasticNet
from regkit.penalties.group_elastic_net import GroupElasticNet
from regkit.penalties.group_l0 import GroupL0
from regkit.penalties.group_lasso import GroupLasso
from regkit.penalties.group_mcp import GroupMCP
from regkit.penalties.l0 import L0
from regkit.penalties.l1 import L1
from regkit.penalties.l2 import L2
from regkit.penalties.l_half import LHalf
from regkit.penalties.log_sum import LogSum
from regkit.penalties.max_rank import MaxRank
from regkit.penalties.mcp import MCP
from regkit.penalties.n_m import NMSparsity
from regkit.penalties.nuclear import Nuclear
from regkit.penalties.penalty import ActivationPenalty, GroupPenalty, Penalty, WeightPenalty
from regkit.penalties.scad import SCAD
from regkit.penalties.sparse_group_lasso import SparseGroupLasso
from regkit.penalties.temporal import TemporalSmoothness
from regkit.penalties.temporal_kernel import TemporalKernel
from regkit.penalties.top_k import TopK
from regkit.penalties.weight_decay import WeightDecay

__all__ = [
    "L0",
    "L1",
    "L2",
    "MCP",
    "SCAD",
    "ActivationL1",
    "ActivationPenalty",
    "Box",
    "ElasticNet",
    "GroupElasticNet",
    "GroupL0",
    "GroupLasso",
    "GroupMCP",
    "GroupPenalty",
    "LHalf",
    "LogSum",
    "MaxRank",
    "NMSparsity",
    "Nuclear",
    "Penalty",
    "SparseGroupLasso",
    "TemporalKernel",
    "TemporalSmoothness",
    "TopK",
    "WeightDecay",
    "WeightPenalty",
]
