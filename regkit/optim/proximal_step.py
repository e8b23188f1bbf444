"""The proximal step: right after every real update, in the metric of the optimizer that made it."""

import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regkit.errors import InputError
from regkit.optim.batch import Batch, Slice, Step, flat, is_dense, local, packed
from regkit.optim.metric import (
    METRICS,
    Group,
    Metric,
    euclidean,
    metric_of,
    momentum_after,
    momentum_at_rest,
)
from regkit.penalties.penalty import WeightPenalty

Chain = tuple[WeightPenalty, ...]

# Entries in a batch. On a CPU the temporaries should stay in the cache (r3d_18, 33 M weights, 2
# threads, fused AdamW and L1 together: 58 ms at 2^19, 123 at 2^15, 334 at 2^24); on a GPU the
# number of launches should count, and temporaries of 64 MiB are nothing.
BATCH_ENTRIES = {"cpu": 2**19, "cuda": 2**24}


class ProximalStep:
    """Apply the penalties of each parameter after every real step of one optimizer.

    Hangs on `optimizer.register_step_post_hook`, so a step that a loss scaler skips is none.
    Parameters without a gradient were not moved and are left alone. Nothing here waits for a GPU.

    chains: the penalties of each parameter, in the order in which they apply.
    Raises: InputError when the optimizer holds none of these parameters or has a step already.
    """

    def __init__(self, optimizer: Optimizer, chains: Mapping[nn.Parameter, Chain]) -> None:
        _check(optimizer, chains)
        self.chains = dict(chains)
        self.seconds = 0.0
        # Answers of the momentum buffers; those that are filled already are taken to be at rest.
        self.momentum = {
            p: momentum_at_rest(group)
            for group in optimizer.param_groups
            for p in group["params"]
            if optimizer.state.get(p, {}).get("momentum_buffer") is not None
        }
        self.metric = _metric_or_warning(optimizer)
        self._handle = optimizer.register_step_post_hook(self._after_step)

    def detach(self) -> None:
        """Take the step off its optimizer."""
        self._handle.remove()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        began = time.perf_counter()
        # Set by a loss scaler during the call of a fused optimizer, which decides on the device.
        found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf.device.type == "cpu" and found_inf.item():
            return
        taken = None if found_inf is None else 1.0 - found_inf
        for group in optimizer.param_groups:
            for chain, batch in self._batches(optimizer, group):
                self._apply(chain, batch, group, taken)
        self.seconds += time.perf_counter() - began

    def _batches(self, optimizer: Optimizer, group: Group) -> Iterator[tuple[Chain, Batch]]:
        """Yield what is updated together: same penalties, type and device."""
        buckets: dict[tuple[Chain, torch.dtype, torch.device], list[Slice]] = defaultdict(list)
        copies: list[tuple[Tensor, Tensor]] = []
        for p in group["params"]:
            if p not in self.chains or p.grad is None or p.numel() == 0:
                continue
            self.momentum[p] = momentum_after(group, self.momentum.get(p))
            values = local(p.detach())
            if not is_dense(values):
                copies.append((values, values.contiguous()))
                values = copies[-1][1]
            buckets[self.chains[p], values.dtype, values.device].append(
                Slice(values, flat(values, values), 0, optimizer.state[p], self.momentum[p])
            )
        if not isinstance(group["lr"], Tensor) and group["lr"] == 0:
            return
        for (chain, _, device), slices in buckets.items():
            for batch in packed(slices, BATCH_ENTRIES.get(device.type, 2**24)):
                yield chain, batch
        for values, copy in copies:
            values.copy_(copy)

    def _apply(self, chain: Chain, batch: Batch, group: Group, taken: Tensor | None) -> None:
        rows = batch.values()
        step = None
        for penalty in chain:
            if penalty.decoupled:
                rows = penalty.prox(rows, _unless_skipped(group["lr"], taken))
            else:
                if step is None:
                    step = _unless_skipped(self.metric(group, batch), taken)
                rows = penalty.prox(rows, step)
        batch.write(rows)


def _unless_skipped(step: Step, taken: Tensor | None) -> Step:
    """Make the step 0, with which a prox changes nothing, where the scaler skipped it."""
    return step if taken is None else step * taken


def _check(optimizer: Optimizer, chains: Mapping[nn.Parameter, Chain]) -> None:
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if not held & chains.keys():
        raise InputError(
            f"attach got a {type(optimizer).__name__} that holds none of the penalised "
            "parameters. Make it from the parameters of the very model that is penalised."
        )
    hooks = optimizer._optimizer_step_post_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), ProximalStep) for hook in hooks):
        raise InputError(
            f"This {type(optimizer).__name__} has a regularizer attached already. Detach it "
            "first, or give one Regularizer all penalties."
        )


def _metric_or_warning(optimizer: Optimizer) -> Metric:
    metric = metric_of(optimizer)
    if metric is None:
        warnings.warn(
            f"regkit does not know the metric of {type(optimizer).__name__}: the prox is taken "
            "with its learning rate as the step, so training converges to something else than "
            "the minimiser of the stated objective where this optimizer rescales or averages "
            f"gradients. Known: {', '.join(known.__name__ for known in METRICS)}.",
            stacklevel=4,
        )
        return euclidean
    return metric
