"""Frame embeddings caught on their way through an unchanged model."""

import weakref
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regkit.errors import InputError

DEFAULT_LAYOUTS = {3: "BTD", 5: "BDTHW"}


def as_frames(
    output: Any, module: nn.Module, layout: str | None, pooled: bool = True
) -> Float[Tensor, "batch frames dim"]:
    """Return a module's output as frame embeddings, averaged over height and width.

    output: a tensor, or a tuple whose first entry is one (recurrent layers).
    pooled: when False, every entry by itself instead, as (1, 1, all), whatever the axes.
    Raises: InputError when the axes cannot be told or do not fit the layout.
    """
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(
            f"Frame embeddings: {type(module).__name__} returned a {type(output).__name__}; "
            "name a module that returns a tensor."
        )
    if not pooled:
        # A copy, for what follows the module may write into its output: relu(inplace=True).
        return output.clone(memory_format=torch.contiguous_format).view(1, 1, -1)
    if layout is None and isinstance(module, nn.RNNBase) and not module.batch_first:
        layout = "TBD"
    layout = layout or DEFAULT_LAYOUTS.get(output.ndim)
    if layout is None or len(layout) != output.ndim:
        raise InputError(
            f"Frame embeddings: {type(module).__name__} returned a tensor of shape "
            f"{tuple(output.shape)}, which "
            + (f"does not fit layout={layout!r}. " if layout else "has no known time axis. ")
            + 'Name a module whose output still has one, or say its axes, such as layout="BDT".'
        )
    order = [layout.index(axis) for axis in "BTD"]
    space = [axis for axis in range(output.ndim) if axis not in order]
    return output.permute(*order, *space).flatten(3).mean(3) if space else output.permute(*order)


class FrameCollector:
    """A forward hook that keeps the outputs of one module until they are taken.

    Only passes that train are kept: `module.training`, gradients on, and not the second pass that
    activation checkpointing makes within backward. A copy of the model, such as an average of its
    weights, is another module: there the hook does nothing.

    Code that `torch.compile` made of passes without the hook is not used while it is there.
    """

    def __init__(
        self, module: nn.Module | None = None, layout: str | None = None, pooled: bool = True
    ) -> None:
        self._module = weakref.ref(module) if module is not None else lambda: None
        self._layout = layout
        self._pooled = pooled
        self._kept: list[Tensor] = []
        self.num_calls = 0
        self.handle: RemovableHandle | None = None
        if module is not None:
            self.handle = module.register_forward_hook(self)
            _tell_compiler(module)

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Keep one output."""
        in_backward = torch._C._current_graph_task_id() != -1
        trains = module.training and torch.is_grad_enabled() and not in_backward
        if trains and module is self._module():
            self.num_calls += 1
            self._kept.append(as_frames(output, module, self._layout, self._pooled))

    def take(self) -> list[Tensor]:
        """Return what was kept since the last time, and forget it."""
        kept, self._kept = self._kept, []
        return kept

    def remove(self) -> None:
        """Take the hook off the module."""
        self._kept = []
        if self.handle is not None:
            self.handle.remove()
        if (module := self._module()) is not None:
            _tell_compiler(module)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FrameCollector, ()


def _tell_compiler(module: nn.Module) -> None:
    """Give a module with a collector its own `forward` as an attribute of the instance.

    torch.compile takes a module without hooks to stay so (skip_nnmodule_hook_guards), and would go
    on with what it compiled for this module, or another one of its class. But it does look whether
    the instance overrides `forward`.
    """
    heard = any(isinstance(hook, FrameCollector) for hook in module._forward_hooks.values())
    own = vars(module).get("forward")
    if heard and own is None and isinstance(module.forward, MethodType):
        vars(module)["forward"] = module.forward
    elif not heard and isinstance(own, MethodType) and own.__func__ is type(module).forward:
        del vars(module)["forward"]
