"""A GPU that computes nothing: torch's meta device, which counts what a step asks of it."""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from regkit.ops import prox_pass
from regkit.ops.gpu import launch, launch_tables
from regkit.optim import batching
from regkit.optim.fused_optimizers import FusedOptimizer

DEVICE = "meta"
# Where our kernels are called: a module, and the name of the kernel in it.
KERNELS = (
    ("regkit.ops.gpu.entries", "prox_entries"),
    ("regkit.ops.gpu.rows", "prox_tiles"),
    ("regkit.ops.gpu.rows", "prox_long"),
    ("regkit.ops.gpu.groups", "prox_groups"),
)
# Where torch's optimizers ask which devices have fused, foreach and capturable updates.
DEVICES_OF_TORCH = (
    "_get_fused_kernels_supported_devices",
    "_get_foreach_kernels_supported_devices",
)
ALIGNMENT = 512  # of what a GPU's allocator hands out, in bytes


@dataclass
class Counts:
    """What a step asked of the device.

    launches: kernels of ours, by name. ops: kernels of torch, by the op. copies: from the host,
    "pinned", "pageable" or, where the host waits for the copy, "blocking". waits: what made the
    host wait, and the line of ours that asked for it.
    """

    launches: Counter[str] = field(default_factory=Counter)
    ops: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    waits: list[str] = field(default_factory=list)

    @property
    def num_kernels(self) -> int:
        """Return how many kernels run: ours and torch's; foreach ops count once."""
        return self.launches.total() + self.ops.total()


@contextmanager
def fake_gpu() -> Iterator[Callable[[Callable[[], Any]], Counts]]:
    """Let the meta device pass for a GPU, and yield what counts a step on it.

    For as long as the context lasts, the kernels of this process are replaced on every GPU.
    """
    counts = Counts()
    with ExitStack() as stack:
        for change in _changes(counts):
            stack.enter_context(change)

        def count(step: Callable[[], Any]) -> Counts:
            for kept in vars(counts).values():
                kept.clear()
            with _Counting(counts):
                step()
            return Counts(*(type(kept)(kept) for kept in vars(counts).values()))

        yield count


def to_fake(net: nn.Module) -> nn.Module:
    """Move the weights of a net to the fake GPU, in place; the parameters stay the same objects."""
    for p in net.parameters():
        empty = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device=DEVICE)
        torch.utils.swap_tensors(p, nn.Parameter(empty, requires_grad=p.requires_grad))
    return net


def draw_fake_gradients(net: nn.Module) -> None:
    """Give every weight a gradient in new memory, as `zero_grad(set_to_none=True)` makes it."""
    for p in net.parameters():
        p.grad = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device=DEVICE)


def _changes(counts: Counts) -> Iterator[Any]:
    """Yield what is changed in torch, and in ours, for as long as the fake is there."""
    from importlib import import_module

    addresses = _Addresses()
    yield patch.object(Tensor, "data_ptr", addresses.of)
    yield patch.object(Tensor, "pin_memory", _pinned)
    yield patch.object(torch.cuda, "is_current_stream_capturing", lambda: False)
    for name in ("optimizer", "adam", "adamw", "sgd"):
        module = import_module(f"torch.optim.{name}")
        for asked in DEVICES_OF_TORCH:
            if hasattr(module, asked):
                yield patch.object(module, asked, lambda: [DEVICE, "cuda", "cpu"])
        if hasattr(module, "_get_capturable_supported_devices"):
            yield patch.object(
                module, "_get_capturable_supported_devices", lambda *_, **__: [DEVICE, "cuda"]
            )
    yield patch.dict(prox_pass.BACKENDS, {DEVICE: launch})
    yield patch.dict(batching.BATCH_ENTRIES, {DEVICE: batching.BATCH_ENTRIES["cuda"]})
    yield patch.object(launch_tables, "_is_here", lambda args: True)
    yield patch.object(FusedOptimizer, "_fused", lambda self, params: True)
    for module, name in KERNELS:
        yield patch.object(import_module(module), name, _Kernel(name, counts))


class _Addresses:
    """Gives memory that is not there addresses as an allocator would."""

    def __init__(self) -> None:
        self.real = Tensor.data_ptr
        self.next = 1 << 40
        self.kept: dict[int, tuple[int, Any]] = {}  # the storage too, or its number is given again

    @property
    def of(self) -> Callable[[Tensor], int]:
        def data_ptr(tensor: Tensor) -> int:
            if tensor.device.type != DEVICE:
                return self.real(tensor)
            storage = tensor.untyped_storage()
            if storage._cdata not in self.kept:
                self.kept[storage._cdata] = self.next, storage
                self.next += -(-max(storage.nbytes(), 1) // ALIGNMENT) * ALIGNMENT
            begins, _ = self.kept[storage._cdata]
            return begins + int(tensor.storage_offset()) * tensor.element_size()

        return data_ptr


class _Kernel:
    """Stands for a kernel: counts its launches."""

    def __init__(self, name: str, counts: Counts) -> None:
        self.name, self.counts = name, counts

    def __getitem__(self, grid: Sequence[int]) -> Callable[..., None]:
        def launched(*args: Any, **options: Any) -> None:
            self.counts.launches[self.name] += 1

        return launched


def _pinned(tensor: Tensor, *_: Any) -> Tensor:
    copy = tensor.clone()
    copy._is_pinned_for_fake = True  # pyright: ignore[reportAttributeAccessIssue]
    return copy


# Ops that look at memory and start no kernel.
LOOKS = frozenset(
    (
        *("alias", "_reshape_alias", "_unsafe_view", "as_strided", "detach", "diagonal", "empty"),
        *("empty_like", "empty_strided", "expand", "flatten", "is_pinned", "is_same_size"),
        *("lift_fresh", "movedim", "narrow", "new_empty", "new_empty_strided", "permute"),
        *("reshape", "resize_", "select", "set_", "slice", "split", "split_with_sizes"),
        *("squeeze", "stride", "sym_size", "t", "transpose", "unbind", "unflatten", "unsqueeze"),
        *("view", "view_as"),
    )
)
# Ops after which torch reads on the host whether they went well.
READ_BACK = frozenset(("_linalg_eigh", "_linalg_svd", "linalg_cholesky_ex"))


class _Counting(TorchDispatchMode):
    """Counts the ops that touch the fake device; what would wait for it gets a zero."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        given = [t for t in _flat([*args, *kwargs.values()]) if isinstance(t, Tensor)]
        there = any(t.device.type == DEVICE for t in given)
        if there and name == "_local_scalar_dense":
            self._waits(name)
            return 0.0 if given[0].is_floating_point() else 0
        if (
            there
            and name == "_to_copy"
            and torch.device(kwargs.get("device") or DEVICE).type == "cpu"
        ):
            self._waits("copy to the host")
            return torch.zeros(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        # torch has no such update of nothing.
        result = None if name.startswith("_fused_") else func(*args, **kwargs)
        made = [t for t in _flat([result]) if isinstance(t, Tensor)]
        if not (there or any(t.device.type == DEVICE for t in made)):
            return result
        if name in ("_to_copy", "copy_") and any(t.device.type == "cpu" for t in given):
            self._copied(name, args, kwargs)
        elif name not in LOOKS:
            self.counts.ops[name] += 1
            if name in READ_BACK:
                self._waits(name)
        return result

    def _copied(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        source = args[1] if name == "copy_" else args[0]
        behind = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
        pinned = hasattr(source, "_is_pinned_for_fake")
        kind = "blocking" if not behind else "pinned" if pinned else "pageable"
        self.counts.copies[kind] += 1
        if kind == "blocking":
            self._waits("copy from the host")

    def _waits(self, what: str) -> None:
        frames = (f for f, _ in traceback.walk_stack(None) if f.f_code.co_filename != __file__)
        ours = (f.f_code for f in frames if "/regkit/" in f.f_code.co_filename)
        code = next(ours, None)
        file = "torch" if code is None else code.co_filename.rpartition("/regkit/")[2]
        self.counts.waits.append(f"{what} in {file}" + (f":{code.co_name}" if code else ""))


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
