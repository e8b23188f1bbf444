"""Density: the share of weights that are not exactly zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from regkit.structure.distributed import all_reduce_counts, full_tensor, is_by_rows, local
from regkit.structure.selectors import weights


@dataclass(frozen=True)
class Density:
    """What is left of a set of weights.

    total: share of non-zero entries, all layers together.
    layers: the same by parameter name.
    live_groups: number of output rows (filters, units) with a non-zero entry; vectors have none.
    num_groups: number of output rows.
    """

    total: float
    layers: dict[str, float]
    live_groups: int
    num_groups: int

    def __str__(self) -> str:
        width = max(map(len, [*self.layers, "total"]))
        lines = [f"{name:<{width}}  {share:7.2%}" for name, share in self.layers.items()]
        rows = f"  ({self.live_groups} of {self.num_groups} output rows live)"
        return "\n".join([*lines, f"{'total':<{width}}  {self.total:7.2%}{rows}"])


@torch.no_grad()
def density(model: nn.Module | Mapping[str, Tensor]) -> Density:
    """Count the exact non-zeros of a model's weights, or of the tensors given by name.

    Of a model: the weights of convolution, linear, attention and recurrent layers, no biases,
    norms or embeddings. Waits for the GPU once, whatever the number of tensors.
    """
    tensors = weights(model) if isinstance(model, nn.Module) else dict(model)
    counts = _counts(list(tensors.values())).tolist() if tensors else []
    sizes = [t.numel() for t in tensors.values()]
    return Density(
        total=sum(nonzero for nonzero, _ in counts) / max(sum(sizes), 1),
        layers={
            name: nonzero / max(size, 1)
            for name, size, (nonzero, _) in zip(tensors, sizes, counts, strict=True)
        },
        live_groups=sum(live for _, live in counts),
        num_groups=sum(t.shape[0] for t in tensors.values() if t.ndim > 1),
    )


@torch.no_grad()
def sized_density(tensors: Mapping[str, Tensor], share: float = 1e-3) -> Tensor:
    """Return the share of weights above a size, 0-d, which is on the CPU only when read.

    share: of the root mean square of the layer's weights that are not zero. Specks that noise has
        woken, and the next step kills, are below it.
    """
    every = list(tensors.values())
    if not every:
        return torch.ones(())
    squares = torch.stack(
        [torch.stack([local(t).double().square().sum(), local(t).count_nonzero()]) for t in every]
    )
    squares = all_reduce_counts(squares, every)
    least = (squares[:, 0] / squares[:, 1].clamp_min(1)).sqrt() * share
    sizes = zip(every, least.unbind(), strict=True)
    counts = torch.stack([(local(t).abs() > size).sum() for t, size in sizes])
    return all_reduce_counts(counts, every).sum() / max(sum(t.numel() for t in every), 1)


def _counts(tensors: Sequence[Tensor]) -> Int[Tensor, "tensors 2"]:
    """Return [non-zero entries, output rows with one] of each, on the CPU only when read.

    A rank counts the rows that it has; a tensor cut along another axis is put together first.
    """
    parts = [t if is_by_rows(t) else full_tensor(t) for t in tensors]
    return all_reduce_counts(torch.stack([_counted(local(t)) for t in parts]), parts)


def _counted(tensor: Tensor) -> Int[Tensor, " 2"]:
    nonzero = tensor != 0
    rows = nonzero.flatten(1).any(1) if nonzero.ndim > 1 else nonzero.new_zeros(0)
    return torch.stack([nonzero.sum(), rows.sum()])
