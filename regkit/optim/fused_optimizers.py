"""ProxSGD and ProxAdamW: torch's optimizers, with update and prox in one pass of a kernel."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Set
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from regkit.errors import InputError

Group = dict[str, Any]


class FusedStep(Protocol):
    """What an optimizer of this package calls from within its step."""

    def fused_step(self, update: str) -> Set[Tensor]:
        """Update some parameters in place, together with the prox, and return which."""
        ...

    def finish(self) -> None:
        """Apply the penalties to what has been moved; the last call of a step."""
        ...


class FusedOptimizer(Optimizer, ABC):
    """An optimizer of torch whose update kernels may take over, together with the prox.

    Without a regularizer, and for what kernels do not serve (on a CPU always), it is torch's own
    fused update. State and param groups are torch's: a run can go on under the other.

    amp_scaling: True lets a loss scaler leave the scaling and the skipping to the device; Lightning
        refuses gradient clipping for such an optimizer, so it is off by default.
    Raises: InputError when an option is out of range or a gradient is sparse.
    """

    # What `regkit.ops.kernel_args.UPDATES` calls the update.
    update: ClassVar[str]
    # Applies the penalties, and updates what it can together with them; set by `attach`.
    proximal_step: FusedStep | None = None

    def __init__(self, params: ParamsT, defaults: Group, amp_scaling: bool) -> None:
        torchs = {"maximize": False, "foreach": None, "differentiable": False, "fused": True}
        super().__init__(params, {**defaults, **torchs})
        self._step_supports_amp_scaling = amp_scaling

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            # Of a run under another implementation.
            group.update(foreach=None, fused=True)
            if group.get("maximize") or group.get("differentiable"):
                raise InputError(
                    f"{type(self).__name__} got a state with maximize or differentiable; it has "
                    "neither. Negate the loss, or use torch's optimizer."
                )

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters."""
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters that have a gradient; return what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        num_moving = self._begin_states()
        step = self.proximal_step
        done = frozenset() if step is None else step.fused_step(self.update)
        for group, params in self.moving() if len(done) < num_moving else ():
            if left := [p for p in params if p not in done]:
                self._advance(group, left)
        if step is not None:
            step.finish()
        return loss

    def _begin_states(self) -> int:
        """Begin the states that are missing, and return how many parameters have a gradient."""
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        if any([g is not None and g.layout is not torch.strided for g in grads]):
            raise InputError(
                f"{type(self).__name__} got a sparse gradient; it moves all entries at every "
                "step. Make the layer with sparse=False."
            )
        moving = [p for p, g in zip(params, grads, strict=True) if g is not None]
        for p, state in zip(moving, [self.state[p] for p in moving], strict=True):
            if not state:
                state.update(self.begin(p))
        return len(moving)

    def moving(self) -> Iterator[tuple[Group, list[Tensor]]]:
        """Yield the parameters of each group that have a gradient, on one device each."""
        for group in self.param_groups:
            by_device: dict[Any, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_device[p.device].append(p)
            yield from ((group, params) for params in by_device.values())

    @abstractmethod
    def begin(self, p: Tensor) -> Group:
        """Return the state that a parameter starts with."""

    @abstractmethod
    def _advance(self, group: Group, params: list[Tensor]) -> None:
        """Move parameters as torch does."""

    def _check(self, group: Group) -> None:
        who = type(self).__name__
        for name in ("lr", "weight_decay", "eps", "momentum"):
            value = group.get(name, 0.0)
            if not isinstance(value, Tensor) and not 0 <= value < float("inf"):
                raise InputError(f"{who} got {name}={value!r}; {name} is a number >= 0.")

    def _scaling(self) -> Group:
        """Return what a loss scaler has left on the optimizer."""
        return {key: getattr(self, key, None) for key in ("grad_scale", "found_inf")}

    def _fused(self, params: list[Tensor]) -> bool | None:
        """Say whether torch fuses the update; not that of SGD on shards (DTensor)."""
        whole = not any(hasattr(p, "to_local") for p in params)
        return True if whole and params[0].device.type in ("cpu", "cuda") else None


class ProxAdamW(FusedOptimizer):
    """AdamW (decoupled weight decay), with the prox of attached penalties in the same pass.

    Options as of `torch.optim.AdamW`; `weight_decay` is 0 by default, for regularization is a
    penalty's business here.

    Source: Loshchilov and Hutter, ICLR 2019, algorithm 2.
    """

    update: ClassVar[str] = "adamw"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = False,
        amp_scaling: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        torchs = {"amsgrad": amsgrad, "capturable": False, "decoupled_weight_decay": True}
        super().__init__(params, {**defaults, **torchs}, amp_scaling)

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)
        for p, kept in self.state.items():
            if "step" in kept:
                kept["step"] = torch.as_tensor(kept["step"], dtype=torch.float32, device=p.device)

    def begin(self, p: Tensor) -> Group:
        """Return no steps and no moments."""
        amsgrad = next(g["amsgrad"] for g in self.param_groups for q in g["params"] if q is p)
        keys = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if amsgrad else ()))
        moments = {k: torch.zeros_like(p, memory_format=torch.preserve_format) for k in keys}
        return {"step": torch.zeros((), device=p.device), **moments}

    def _advance(self, group: Group, params: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [s["max_exp_avg_sq"] for s in states if group["amsgrad"]],
            [s["step"] for s in states],
            fused=self._fused(params),
            **self._scaling(),
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _check(self, group: Group) -> None:
        super()._check(group)
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise InputError(f"ProxAdamW got betas={group['betas']!r}; give two numbers in [0, 1).")


class ProxSGD(FusedOptimizer):
    """SGD (momentum, dampening, Nesterov), with the prox of attached penalties in the same pass.

    Options as of `torch.optim.SGD`.
    """

    update: ClassVar[str] = "sgd"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        amp_scaling: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening}
        torchs = {"weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, {**defaults, **torchs}, amp_scaling)

    def begin(self, p: Tensor) -> Group:
        """Return nothing: torch fills the buffer with the first gradient."""
        return {}

    def _advance(self, group: Group, params: list[Tensor]) -> None:
        # torch takes them for all new if the first one is.
        new = [p for p in params if self.state[p].get("momentum_buffer") is None]
        if group["momentum"] > 0 and 0 < len(new) < len(params):
            self._advance(group, [p for p in params if "momentum_buffer" in self.state[p]])
            params = new
        buffers: list[Tensor | None] = [self.state[p].get("momentum_buffer") for p in params]
        found_inf = getattr(self, "found_inf", None)
        fresh = group["momentum"] > 0 and any(buffer is None for buffer in buffers)
        if fresh and found_inf is not None and found_inf.item():
            # torch would begin a buffer with memory that nobody has written to.
            return
        sgd(
            params,
            [p.grad for p in params if p.grad is not None],
            buffers,
            fused=self._fused(params),
            **self._scaling(),
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=False,
        )
        if group["momentum"] > 0:
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer

    def _check(self, group: Group) -> None:
        super()._check(group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise InputError(
                f"ProxSGD got nesterov=True with momentum={group['momentum']!r} and "
                f"dampening={group['dampening']!r}; it needs momentum > 0 and dampening 0."
            )
