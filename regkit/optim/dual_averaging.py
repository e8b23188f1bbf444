"""Dual averaging with momentum: the optimizers RMDA and RAMDA, whose final iterate is sparse."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from regkit.errors import InputError
from regkit.optim.fused_optimizers import FusedStep
from regkit.optim.stages import (
    Group,
    averaging_weight,
    check_options,
    stage_of,
    step_number,
    warn_of_a_dense_end,
)

# pyright: reportPrivateImportUsage=false
# torch._foreach_* have no public name; one call of them updates many parameters.

State = dict[str, Any]


class DualAveraging(Optimizer, ABC):
    """Sum all gradients of a stage, and start each step from where the stage began.

    A step writes the averaged point into the parameters, lets `proximal_step` apply the penalties
    to it in place, and draws the former iterate towards it by the weight `averaging`.
    In the last stage that weight rises to 1, so what training ends with is a prox point: its
    zeros are zeros. Before that the iterate is an average, and dense.

    Options, each of a param group as well:
    lr: learning rate; it is read at every step, so schedulers work, and is never written. Rate 0
        moves nothing.
    averaging: weight of the new point, c in the papers ("momentum" in their code), in (0, 1]. In
        the last stage it is min(c sqrt(i), 1) at the i-th step, so 1 after 1 / c^2 steps.
    stages: after how many steps a new stage begins: whole numbers; in the constructor also shares
        of `num_steps`, in (0, 1).
    num_steps: length of training, if known.
    stage_decay: what a new stage multiplies the rate by (in the optimizer's own reckoning).
    Raises: InputError when an option is out of range, a parameter complex or a gradient sparse.
    """

    # Applies the penalties to all parameters, in place; set by `attach`.
    proximal_step: FusedStep | None = None
    # What is summed over a stage.
    sums: ClassVar[tuple[str, ...]] = ("grad_sum",)

    def __init__(
        self,
        params: ParamsT,
        options: Group,
        stages: Sequence[int | float],
        num_steps: int | None,
    ) -> None:
        begins = tuple(step_number(type(self).__name__, s, num_steps) for s in stages)
        # num_done counts the calls of `step`.
        super().__init__(params, {**options, "stages": begins, "num_done": 0})
        for group in self.param_groups:
            warn_of_a_dense_end(type(self).__name__, group, num_steps)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters, in the stage that the others are in."""
        who = type(self).__name__
        check_options(who, {**self.defaults, **param_group})
        if getattr(self, "param_groups", None):
            first = self.param_groups[0]
            param_group = {**{k: first[k] for k in ("num_done", "stages")}, **param_group}
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.is_complex():
                self.param_groups.pop()
                raise InputError(f"{who} got a complex parameter; give its real view.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters that have a gradient; return what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        former = []
        for group in self.param_groups:
            weight = averaging_weight(group)
            for params in self._alike(group):
                former.append((params, self._former(params, weight), weight))
                self._advance(group, params)
            group["num_done"] += 1
        if self.proximal_step is not None:
            self.proximal_step.finish()
        for params, iterates, weight in former:
            self._average(params, iterates, weight)
        return loss

    def restart(self) -> None:
        """Begin a new stage with the next step, for instance when the loss has settled."""
        for group in self.param_groups:
            if group["num_done"] > 0:
                group["stages"] = tuple(sorted({*group["stages"], group["num_done"]}))

    def load_state_dict(self, state_dict: State) -> None:
        """Continue from a state; sums of parameters in half precision stay in float32."""
        super().load_state_dict(state_dict)
        places = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for place, p in zip(places, params, strict=True):
            for key, value in state_dict["state"].get(place, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][key] = value.to(p.device)

    @abstractmethod
    def _add(self, params: list[Tensor], grads: list[Tensor], rate: float) -> None:
        """Add the gradients to the sums, with this weight."""

    @abstractmethod
    def _place(self, group: Group, params: list[Tensor], targets: list[Tensor]) -> None:
        """Move the targets from where the stage began to the averaged point."""

    def _alike(self, group: Group) -> list[list[Tensor]]:
        """Return the parameters to move, by step within the stage, type and device."""
        if group["lr"] == 0:
            return []
        stage = stage_of(group)
        alike: dict[Any, list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise InputError(
                    f"{type(self).__name__} got a sparse gradient; it moves all entries at every "
                    "step. Make the layer with sparse=False."
                )
            if self.state[p].get("stage") != stage:
                self._begin(p, stage)
            alike[(self.state[p]["step"], p.dtype, p.device)].append(p)
        return list(alike.values())

    def _begin(self, p: Tensor, stage: int) -> None:
        """Begin a stage: at the first step of a parameter, or at its first one of the stage."""
        state = self.state[p]
        accurate = torch.promote_types(p.dtype, torch.float32)
        start = state.get("average", p.detach()).to(accurate, copy=True)
        state.update(stage=stage, step=0, alpha=0.0, initial_point=start)
        state.update({key: torch.zeros_like(start) for key in self.sums})
        if p.dtype != accurate:
            # Half precision is too coarse for a sum of which each step adds a hundredth.
            state["average"] = start.clone()

    def _former(self, params: list[Tensor], weight: float) -> list[Tensor]:
        """Return the iterates before the step, where the average needs them."""
        if "average" in self.state[params[0]]:
            return self._kept("average", params)
        if weight == 1:
            return []
        former = self._room("former", params)
        torch._foreach_copy_(former, params)
        return former

    def _advance(self, group: Group, params: list[Tensor]) -> None:
        for p in params:
            self.state[p]["step"] += 1
        rate = group["lr"] * group["stage_decay"] ** stage_of(group)
        rate *= math.sqrt(self.state[params[0]]["step"])
        for p in params:
            self.state[p]["alpha"] += rate
        initial = self._kept("initial_point", params)
        accurate = initial[0].dtype
        self._add(params, [p.grad.to(accurate) for p in params if p.grad is not None], rate)
        coarse = params[0].dtype != accurate
        targets = self._room("point", params) if coarse else params
        torch._foreach_copy_(targets, initial)
        self._place(group, params, targets)
        if coarse:
            torch._foreach_copy_(params, targets)

    def _average(self, params: list[Tensor], former: list[Tensor], weight: float) -> None:
        if "average" in self.state[params[0]]:
            torch._foreach_lerp_(former, [p.to(former[0].dtype) for p in params], weight)
            torch._foreach_copy_(params, former)
        elif former:
            torch._foreach_lerp_(params, former, 1 - weight)

    def _room(self, key: str, params: list[Tensor]) -> list[Tensor]:
        """Return work memory, in single precision at least, that is no part of the state.

        Kept on a CPU, where touching fresh memory would take a third of the step.
        """
        kept: dict[Any, Tensor] = vars(self).setdefault("_work", {})
        room = []
        for p in params:
            accurate = self.state[p]["initial_point"]
            buffer = kept.get((key, p))
            if buffer is None or buffer.device != p.device or buffer.dtype != accurate.dtype:
                buffer = torch.empty_like(accurate)
            if p.device.type == "cpu":
                kept[key, p] = buffer
            room.append(buffer)
        return room

    def _kept(self, key: str, params: list[Tensor]) -> list[Tensor]:
        return [self.state[p][key] for p in params]


class RMDA(DualAveraging):
    """Regularized dual averaging with momentum.

    s_t = lr sqrt(t),  V_t = sum_i s_i g_i,  alpha_t = sum_i s_i  (within a stage)
    q = prox of alpha_t / sqrt(t) times the penalty, at  p_0 - V_t / sqrt(t)
    p <- (1 - c) p + c q;   next stage: p_0 <- p, sums <- 0, lr <- stage_decay lr

    The step of the prox grows with t while the noise in V averages out; the paper proves, where
    the minimiser is not degenerate, that the zeros are its own after finitely many steps.
    Euclidean: for models that SGD trains.

    Source: Lee, Chen, Training structured neural networks through manifold identification and
    variance reduction, ICLR 2022, algorithm 1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        averaging: float = 0.1,
        *,
        stages: Sequence[int | float] = (),
        num_steps: int | None = None,
        stage_decay: float = 0.1,
    ) -> None:
        options = {"lr": lr, "averaging": averaging, "stage_decay": stage_decay}
        super().__init__(params, options, stages, num_steps)

    def _add(self, params: list[Tensor], grads: list[Tensor], rate: float) -> None:
        torch._foreach_add_(self._kept("grad_sum", params), grads, alpha=rate)

    def _place(self, group: Group, params: list[Tensor], targets: list[Tensor]) -> None:
        factor = -1 / math.sqrt(self.state[params[0]]["step"])
        torch._foreach_add_(targets, self._kept("grad_sum", params), alpha=factor)


class RAMDA(DualAveraging):
    """Regularized dual averaging with momentum, in an adaptive metric.

    s_t = lr sqrt(t),  V_t = sum_i s_i g_i,  U_t = sum_i s_i g_i^2,  alpha_t = sum_i s_i
    P = U_t^(1/3) + eps;   q = prox of alpha_t times the penalty in metric P, at  p_0 - V_t / P
    p <- (1 - c) p + c q;   next stage: as RMDA, and eps <- stage_decay eps

    For what Adam trains better than SGD: attention, recurrent layers.

    eps: added to the metric; > 0.
    Source: Huang, Lee, Lee, Regularized adaptive momentum dual averaging with an efficient inexact
    subproblem solver, NeurIPS 2024, algorithm 1 (here with the exact prox).
    """

    sums: ClassVar[tuple[str, ...]] = ("grad_sum", "square_sum")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        averaging: float = 0.1,
        *,
        eps: float = 1e-6,
        stages: Sequence[int | float] = (),
        num_steps: int | None = None,
        stage_decay: float = 0.1,
    ) -> None:
        options = {"lr": lr, "averaging": averaging, "eps": eps, "stage_decay": stage_decay}
        super().__init__(params, options, stages, num_steps)

    def _add(self, params: list[Tensor], grads: list[Tensor], rate: float) -> None:
        torch._foreach_add_(self._kept("grad_sum", params), grads, alpha=rate)
        torch._foreach_addcmul_(self._kept("square_sum", params), grads, grads, value=rate)

    def _place(self, group: Group, params: list[Tensor], targets: list[Tensor]) -> None:
        scales = self._room("scale", params)
        torch._foreach_copy_(scales, self._kept("square_sum", params))
        torch._foreach_pow_(scales, 1 / 3)
        torch._foreach_add_(scales, group["eps"] * group["stage_decay"] ** stage_of(group))
        torch._foreach_addcdiv_(targets, self._kept("grad_sum", params), scales, value=-1.0)
        if self.proximal_step is not None:
            # For the metric; gone when the step ends.
            for p, scale in zip(params, scales, strict=True):
                self.state[p]["scale"] = scale

    def _average(self, params: list[Tensor], former: list[Tensor], weight: float) -> None:
        super()._average(params, former, weight)
        for p in params:
            self.state[p].pop("scale", None)
