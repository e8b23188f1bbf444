"""2:4 sparse weights of linear layers, in the form that GPUs multiply without their zeros."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.sparse import (
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
    to_sparse_semi_structured,
)

from regkit.errors import InputError
from regkit.inference.export.exported import reason
from regkit.structure.replica import replica, unwrapped

_LEAST_CAPABILITY = (8, 0)  # Ampere: the first with sparse tensor cores
# The hardware's pattern for float32 is 1:2, another one: conversion would lose weights silently.
_TYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class TwoFour:
    """A model whose linear layers are sparse where they can be.

    model: a copy, for inference.
    sparse: names of the layers that were converted.
    dense: why each other linear layer stays as it is, by its name.
    """

    model: nn.Module
    sparse: list[str]
    dense: dict[str, str]


def two_four(model: nn.Module) -> TwoFour:
    """Convert linear layers whose weights obey 2:4, as the penalty n_m makes them.

    Whether that is faster depends on the shapes and on the GPU: measure it.

    model: in float16 or bfloat16, on a CUDA GPU.
    Raises: InputError without a GPU that can do it, or when the model is not on it.
    Source: Mishra et al., arXiv 2104.08378 (2021), section 3.
    """
    _check_device(model)
    copy = replica(unwrapped(model))
    dense = unfit(copy)
    sparse = []
    for name, layer in copy.named_modules():
        if type(layer) is not nn.Linear or name in dense:
            continue
        try:
            converted = to_sparse_semi_structured(layer.weight.detach().contiguous())
        except (RuntimeError, NotImplementedError) as error:
            dense[name] = reason(error)
            continue
        layer.weight = nn.Parameter(converted, requires_grad=False)
        sparse.append(name)
    return TwoFour(copy, sparse, dense)


def unfit(model: nn.Module) -> dict[str, str]:
    """Say of each linear layer that cannot be converted why, by its name; any device will do."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and (why := _unfit(layer)) is not None:
            found[name] = why
    return found


def obeys_two_four(weight: Tensor) -> bool:
    """Say whether at most two of each four consecutive weights of a row are not zero."""
    if weight.shape[-1] % 4:
        return False
    return bool(((weight != 0).unflatten(-1, (-1, 4)).sum(-1) <= 2).all())


def _unfit(layer: nn.Linear) -> str | None:
    if type(layer) is not nn.Linear:
        return f"it is a {type(layer).__name__}, whose owner may read its weight in other ways"
    weight = layer.weight
    if weight.dtype not in _TYPES:
        return f"its weight is {weight.dtype}; call model.half() or model.bfloat16()"
    rows, columns = _multiples(weight.dtype)
    if weight.shape[0] % rows or weight.shape[1] % columns:
        return (
            f"its weight is {weight.shape[0]} x {weight.shape[1]}; multiples of {rows} x {columns} "
            "are allowed"
        )
    if not obeys_two_four(weight):
        return "more than two of four consecutive weights are not zero"
    return None


def _multiples(dtype: torch.dtype) -> tuple[int, int]:
    """Return what rows and columns must be multiples of, by the library that PyTorch uses."""
    cutlass = torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS
    kind = SparseSemiStructuredTensorCUTLASS if cutlass else SparseSemiStructuredTensorCUSPARSELT
    allowed = kind._DTYPE_SHAPE_CONSTRAINTS[dtype]
    return allowed.sparse_min_rows, allowed.sparse_min_cols


def _check_device(model: nn.Module) -> None:
    needs = "two_four needs a CUDA GPU of compute capability 8.0 or more (A100, RTX 30 or later)"
    if not torch.cuda.is_available():
        raise InputError(f"{needs}, and PyTorch finds no GPU here. Elsewhere, stay dense.")
    devices = {parameter.device for parameter in model.parameters()}
    if any(device.type != "cuda" for device in devices):
        where = ", ".join(sorted(map(str, devices)))
        raise InputError(f"two_four got a model on {where}. Call model.cuda() first.")
    for device in devices:
        found = torch.cuda.get_device_capability(device)
        if found < _LEAST_CAPABILITY:
            name = torch.cuda.get_device_name(device)
            raise InputError(f"{needs}; {name} has {found[0]}.{found[1]}. Stay dense there.")
