"""Critical strengths of a model on its data: the last layer, each layer, the first step."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from regkit.errors import InputError
from regkit.optim.proximal_step import ProximalStep
from regkit.regularizer.bound_penalty import BoundPenalty
from regkit.selection.bounds import Bound
from regkit.selection.critical import critical
from regkit.selection.untouched import untouched
from regkit.structure.groups import GroupSet
from regkit.structure.selectors import clean_name

# Of what the model is called with and what its scores are held against.
Batches = Iterable[tuple[Any, Tensor]]
# The mean over a batch.
Loss = Callable[[Tensor, Tensor], Tensor]
# Relative, of the strength of the first step: each attempt is a step of the optimizer.
PRECISION = 1e-4
NUM_ITERATIONS = 500  # of L-BFGS, for a few hundred numbers at most


def head_bound(
    model: nn.Module, bound: BoundPenalty, batches: Batches, loss: Loss = cross_entropy
) -> Bound:
    """Return the strength from which on zero weights of the last linear layer are a fixed point.

    Its inputs are computed once, in evaluation mode; its weights are zero and its bias is at its
    own optimum (for cross-entropy: the logarithms of the shares of the classes). Exact where all
    weights of the bound are that layer's and no other parameter of the model is trained: this is
    then lam_max of F, of which zero weights are a minimiser from there on.

    Raises: InputError when the scores come from no linear layer, when the bound leaves that layer
        alone, or when there is no batch.
    """
    with untouched(model), torch.no_grad():
        model.eval()
        name, head, inputs, targets = _seen(model, batches)
    chosen = set(bound.parameters().values())
    if head.weight not in chosen:
        raise InputError(
            f"head_bound: {bound.name!r} does not act on {name!r}, the last linear layer. Ask for "
            "layer_bounds, or choose the layer with `params`."
        )
    bias = _best_bias(head, inputs, targets, loss, free=head.bias not in chosen)
    shift = bias.detach().requires_grad_()
    zero = torch.zeros_like(head.weight, requires_grad=True)
    total = sum(len(y) for y in targets)
    for x, y in zip(inputs, targets, strict=True):
        (loss(nn.functional.linear(x, zero, shift), y) * (len(y) / total)).backward()
    gradients = {head.weight: zero.grad, head.bias: shift.grad}
    lam = critical(bound, {p: g for p, g in gradients.items() if p in chosen and g is not None})
    trained = {p for p in model.parameters() if p.requires_grad}
    if trained | chosen <= {head.weight, head.bias}:
        return Bound("exact", f"{name}.weight", lam, "zero weights minimise F (lam_max)")
    why = "zero with its bias at the optimum, it stays zero"
    return Bound("per layer", f"{name}.weight", lam, why)


def layer_bounds(
    model: nn.Module, bound: BoundPenalty, batches: Batches, loss: Loss = cross_entropy
) -> list[Bound]:
    """Return for each penalised weight the strength from which on it stays zero, set to zero alone.

    In evaluation mode, with all other weights as they are: one pass over the batches for each. A
    heuristic for deep nets: with two layers at zero the gradient of both vanishes, so that zero
    is a stationary point of F at any strength, however weak. And a layer before batch norm and
    ReLU gets 0 as long as the shifts are 0, as they are at first: of what is zero, ReLU passes no
    gradient back. Such filters do not come back at any strength.

    batches: read once a layer; a list or a DataLoader.
    Raises: InputError when there is no batch, or as `critical` does.
    """
    found = []
    with untouched(model):
        model.eval()
        for part in bound.parts:
            group_set, parameters = part.group_set, part.parameters
            with _at_zero(group_set):
                gradients = _gradients(model, parameters, batches, loss)
            lam = critical(replace(bound, parts=[part]), gradients)
            found.append(Bound("per layer", group_set.name, lam, "zero alone, it stays zero"))
    return found


def step_bound(
    model: nn.Module,
    bound: BoundPenalty,
    make_optimizer: Callable[[Any], Optimizer],
    batches: Batches,
    loss: Loss = cross_entropy,
) -> Bound:
    """Return the strength at which the first step of training makes all weights zero.

    Exact for that step, in the metric of that optimizer, in training mode. Found by taking the step
    again and again at other strengths.

    make_optimizer: from the model's parameters; its first step is the one.
    batches: of the first step; one is enough.
    Raises: InputError when there is no batch, or when no strength does.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    with untouched(model):
        model.train()
        gradients = _gradients(model, parameters, batches, loss)
        start = [p.detach().clone() for p in parameters]

        def dies(lam: float) -> bool:
            with torch.no_grad():
                for p, value in zip(parameters, start, strict=True):
                    p.copy_(value)
                    p.grad = gradients[p].clone()
            optimizer = make_optimizer(model.parameters())
            step = ProximalStep(optimizer, *_at(bound, lam / bound.penalty.lam))
            optimizer.step()
            step.detach()
            return not any(bool(part.group_set.rows().any()) for part in bound.parts)

        lam = _first(dies, bound)
    return Bound("one step", bound.name, lam, "the first step makes all weights zero")


def _seen(model: nn.Module, batches: Batches) -> tuple[str, nn.Linear, list[Tensor], list[Tensor]]:
    """Return the linear layer whose output the model returns, what it gets, and the targets."""
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def keep(module: nn.Linear, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, arguments[0], output))

    linear = {m: name for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    handles = [module.register_forward_hook(keep) for module in linear]  # type: ignore[arg-type]
    inputs, targets, head = [], [], None
    try:
        for clip, target in batches:
            calls.clear()
            scores = model(clip)
            head, seen, output = calls[-1] if calls else (None, scores, None)
            if head is None or output is not scores:
                raise InputError(
                    f"head_bound: the scores of {type(model).__name__} are not the output of an "
                    "nn.Linear. Ask for layer_bounds or the budget."
                )
            inputs.append(seen.flatten(0, -2))
            targets.append(target)
    finally:
        for handle in handles:
            handle.remove()
    if head is None:
        raise InputError("head_bound got no batches; give those that are trained on.")
    return clean_name(linear[head]), head, inputs, targets


def _best_bias(
    head: nn.Linear, inputs: Sequence[Tensor], targets: Sequence[Tensor], loss: Loss, free: bool
) -> Tensor:
    """Return the constant scores of least loss; what there is where the bias is not free."""
    zero = head.weight.new_zeros(head.out_features)
    if head.bias is None or not free:
        return zero
    if not head.bias.requires_grad:
        return head.bias.detach()
    bias = zero.clone().requires_grad_()
    total = sum(len(y) for y in targets)
    solver = torch.optim.LBFGS(
        [bias],
        max_iter=NUM_ITERATIONS,
        tolerance_grad=torch.finfo(bias.dtype).eps,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        bias.grad = None
        parts = [loss(bias.expand(len(y), -1), y) * (len(y) / total) for y in targets]
        mean = torch.stack(parts).sum()
        mean.backward()
        return mean

    solver.step(closure)  # type: ignore[arg-type]: LBFGS takes tensors
    return bias.detach()


def _gradients(
    model: nn.Module, parameters: Sequence[nn.Parameter], batches: Batches, loss: Loss
) -> dict[nn.Parameter, Tensor]:
    """Return the gradient of the mean loss over all batches."""
    sums = [torch.zeros_like(p) for p in parameters]
    total = 0
    for clip, target in batches:
        one = loss(model(clip), target) * len(target)
        parts = torch.autograd.grad(one, parameters, allow_unused=True)
        for held, part in zip(sums, parts, strict=True):
            if part is not None:
                held += part
        total += len(target)
    if total == 0:
        raise InputError(
            "There was no batch to take gradients from. Give batches that can be read again and "
            "again: a list, or a DataLoader."
        )
    return {p: held / total for p, held in zip(parameters, sums, strict=True)}


@contextmanager
def _at_zero(group_set: GroupSet) -> Iterator[None]:
    kept = group_set.rows().clone()
    with torch.no_grad():
        group_set.write(torch.zeros_like(kept))
    try:
        yield
    finally:
        with torch.no_grad():
            group_set.write(kept)


def _at(bound: BoundPenalty, strength: float) -> tuple[Mapping[nn.Parameter, Any], Sequence[Any]]:
    """Return the element-wise penalties of each parameter, and the group penalties."""
    parts = [replace(part, penalty=part.penalty.scaled(strength)) for part in bound.parts]
    if bound.elementwise:
        return {part.group_set.pieces[0].parameter: (part,) for part in parts}, ()
    return {}, parts


def _first(dies: Callable[[float], bool], bound: BoundPenalty) -> float:
    """Return the strength from which on everything dies."""
    low = high = 1.0
    while not dies(high):
        low, high = high, 4 * high
        if high > 1e18:
            raise InputError(
                f"step_bound: no strength of {type(bound.penalty).__name__} makes all weights zero "
                "in one step. Use the budget, or give lam as a number."
            )
    while dies(low):
        low, high = low / 4, low
        if low < 1e-18:
            return high
    while high > low * (1 + PRECISION):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if dies(middle) else (middle, high)
    return high
