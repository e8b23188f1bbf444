"""Count what a model holds and computes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from regkit.structure.replica import fixed_seed, outputs, replica


def num_parameters(model: nn.Module) -> int:
    """Count the parameters, each once."""
    return sum(p.numel() for p in model.parameters())


def num_bytes(model: nn.Module) -> int:
    """Count the bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def num_flops(model: nn.Module, example: Any) -> int:
    """Count one run: two for each multiplication with its addition, in convolutions, products.

    On meta tensors where the model runs on them: there nothing is computed, and recurrent layers
    are matrix products too, while kernels that fuse them are not counted.
    """
    shadow = replica(model).to("meta")
    on_meta = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, example)
    try:
        return _counted(shadow, on_meta)
    except Exception:  # A value was read, or a tensor is made on a device that the code names.
        return _counted(model, example)


def _counted(model: nn.Module, example: Any) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), fixed_seed(model), counter:
        outputs(model, example)
    return counter.get_total_flops()
