"""Whether channels can be removed, by removing some and running what is left.

The graph of a run says which tensor slices seem to belong to a channel. It is taken at its word
only where a model with random weights gives the same outputs with those channels set to zero and
with them cut out. With weights at random an error can hide only by an unlikely coincidence, as it
could behind zeros of an initialisation or of a sparse model.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from regkit.structure.channels import READER, WRITER, Channels
from regkit.structure.removal import Dead, remove_channels, zero_channels
from regkit.structure.replica import fixed_seed, outputs, told

# Error allowed beside the largest output. Rounding through a deep network stays far below; a wrong
# channel in float64 does not.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

# Sets that belong together, but are taken for two, fail where different channels of them are cut.
# Sets of few channels may be cut alike by chance: of these, any one is also cut without any other.
_FEW = 16

# Large weights saturate a softmax, which then hides what goes into it: cuts are tried at this scale
# too.
_SMALL = 0.4

# A weight counts as seen when it changes the outputs by this many times the allowed error.
_SEEN = 1000

# So many of like names have to fail by themselves before the rest of them are not tried.
_ALIKE = 2

# What belongs together is judged together: the sets of a recurrent layer lose equally many.
Unit = Sequence[Channels]


class CutVerifier:
    """A replica with random weights, in float64 where the model runs in it, and its verdicts.

    unreached: the parameters that the outputs of the example do not depend on.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        """Take over a replica, whose weights are overwritten."""
        self._draw = torch.Generator().manual_seed(0)
        self._bar = tqdm(desc="channels", unit=" cuts", delay=3, leave=False, disable=None)
        self.model, self._example, self._dtype = _in_doubles(model, example)
        _randomise(self.model, self._draw)
        self._failed: dict[str, dict[Any, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.unreached: frozenset[str] = frozenset()
        self._reached = self._gradients()
        # Layers that run in training alone may read a channel too: there, cut models must run.
        self._trains = bool(self.unreached) and self._runs_in_training()

    def verify(self, units: Sequence[Unit], role: str) -> dict[str, str]:
        """Return, by the name of the set, why channels with all `role` slices zero must stay."""
        wrong: dict[str, str] = {}
        with _scaled(self.model, _SMALL):
            wrong |= self._search(units, role)
        wrong |= self._search([u for u in units if u[0].name not in wrong], role)
        few = [u for u in units if min(c.num_groups for c in u) <= _FEW]
        for bit in range(len(few).bit_length()):
            some = [u for place, u in enumerate(few, 1) if place >> bit & 1]
            wrong |= self._search([u for u in some if u[0].name not in wrong], role)
        return wrong

    def _search(self, units: Sequence[Unit], role: str) -> dict[str, str]:
        """Try all at once; where that fails, each half.

        Deep nets repeat their layers: what is like two that failed alone fails without a trial.
        """
        known = self._failed[role]
        sure = {likeness(u): known[likeness(u)] for u in units if len(known[likeness(u)]) >= _ALIKE}
        wrong = {c.name: sure[likeness(u)][0] for u in units if likeness(u) in sure for c in u}
        units = [u for u in units if likeness(u) not in sure]
        why = self.fault(units, role) if units else None
        if why is None:
            return wrong
        if len(units) == 1:
            known[likeness(units[0])].append(why)
            return wrong | {channels.name: why for channels in units[0]}
        half = len(units) // 2
        return wrong | self._search(units[:half], role) | self._search(units[half:], role)

    def unseen(self, channels: Channels) -> str | None:
        """Return why nothing can be said of channels that the outputs do not depend on."""
        for role in (WRITER, READER):
            if not any(s.tensor in self._reached for s in channels.slices if s.role == role):
                return "its weights hardly change the outputs of the example"
        return None

    def fault(self, units: Sequence[Unit], role: str) -> str | None:
        """Cut some channels of all units; return what is then wrong, None where nothing is."""
        self._bar.update()
        dead = [pair for unit in units for pair in self._some(unit)]
        with _restored(self.model, dead, self._trains):
            zero_channels(self.model, dead, role)
            try:
                return self._differs(self.model, dead)
            except Exception as error:
                return f"without some channels the model fails ({told(error)})"
            finally:
                self.model.eval()

    def _differs(self, model: nn.Module, dead: Dead) -> str | None:
        # What is wrong mostly fails in the cut model, and early: the whole one comes after it.
        with _restored(model, dead, self._trains):
            remove_channels(model, dead)
            left = self._run(model)
            if self._trains:
                self._run(model.train())
        whole = self._run(model.eval())
        if [o.shape for o in whole] != [o.shape for o in left]:
            return "is an output of the network"
        if any(_error(a, b) > _TOLERANCE[self._dtype] for a, b in zip(whole, left, strict=True)):
            return "without some channels the outputs change"
        return None

    def _some(self, unit: Unit) -> list[tuple[Channels, Bool[Tensor, " _"]]]:
        """Choose channels at random, equally many of each set in the unit.

        The first goes and the last stays: a tensor that wrongly keeps its size would hide behind
        the loss of its end.
        """
        most = max(min(channels.num_groups for channels in unit) // 2, 1)
        count = int(torch.randint(1, most + 1, (), generator=self._draw))
        chosen = []
        for channels in unit:
            others = torch.randperm(channels.num_groups - 2, generator=self._draw) < count - 1
            mask = torch.cat([torch.ones(1), others, torch.zeros(1)]).bool()
            chosen.append((channels, mask))
        return chosen

    def _gradients(self) -> frozenset[str]:
        """Return the parameters that the outputs depend on, to first order; keep the others."""
        model = self.model.requires_grad_(True)
        recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
        # cuDNN's recurrent layers have no backward in eval mode.
        plain = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
        with torch.enable_grad(), fixed_seed(model), plain:
            found = [o for o in outputs(model, self._example) if o.requires_grad]
            named = dict(model.named_parameters(remove_duplicate=False))
            if not found or not named:
                return frozenset()
            gradients = torch.autograd.grad(
                found, list(named.values()), [torch.rand_like(o) for o in found], allow_unused=True
            )
        self.unreached = frozenset(
            name for name, g in zip(named, gradients, strict=True) if g is None
        )
        least = _SEEN * _TOLERANCE[self._dtype] * max(float(o.detach().abs().max()) for o in found)
        effects = {
            name: (g * named[name].detach()).abs().sum()
            for name, g in zip(named, gradients, strict=True)
            if g is not None
        }
        return frozenset(name for name, effect in effects.items() if float(effect) > least)

    def _run(self, model: nn.Module) -> list[Tensor]:
        enabled = torch.backends.cudnn.enabled
        exact = torch.backends.cudnn.flags(enabled=enabled, allow_tf32=False)
        with torch.no_grad(), fixed_seed(model), exact:
            return outputs(model, self._example)

    def _runs_in_training(self) -> bool:
        try:
            self._run(deepcopy(self.model).train())
        except Exception:  # One clip is too few for some batch norms: then there is no such check.
            return False
        return True


def likeness(unit: Unit) -> frozenset[tuple[str, int, str]]:
    """Return what is the same of channels in layers of like names."""
    slices = (s for channels in unit for s in channels.slices)
    return frozenset((re.sub(r"\d+", "#", s.tensor), s.axis, s.role) for s in slices)


@contextmanager
def _restored(model: nn.Module, dead: Dead, buffers_too: bool) -> Iterator[None]:
    """Let a model be cut, with weights of its own, and be as before afterwards."""
    names = {s.tensor for c, _ in dead for s in c.slices}
    if buffers_too:
        names |= {name for name, _ in model.named_buffers()}
    numbers = {(w.module, w.attribute) for c, _ in dead for w in c.widths}
    held = {name: _get(model, name) for name in names}
    kept = {key: getattr(model.get_submodule(key[0]), key[1]) for key in numbers}
    for name, tensor in held.items():
        _set(model, name, deepcopy(tensor))
    try:
        yield
    finally:
        for name, tensor in held.items():
            _set(model, name, tensor)
        for (name, attribute), number in kept.items():
            setattr(model.get_submodule(name), attribute, number)


@contextmanager
def _scaled(model: nn.Module, scale: float) -> Iterator[None]:
    """Multiply the weights of a model, biases and norms aside, and put them back afterwards."""
    weights = [p for p in model.parameters() if p.ndim > 1 and p.is_floating_point()]
    kept = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for p in weights:
            p.mul_(scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, before in zip(weights, kept, strict=True):
                p.copy_(before)


def _get(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf)


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, tensor)


def _in_doubles(model: nn.Module, example: Any) -> tuple[nn.Module, Any, torch.dtype]:
    """Return the model, cast in place, and random numbers to run it on: float64 if it can."""
    for dtype in (torch.float64, torch.float32):
        cast = model.to(dtype)
        try:
            with torch.no_grad(), fixed_seed(cast):
                drawn = tree_map(lambda x, dtype=dtype: _drawn(x, dtype), example)
                outputs(cast, drawn)
        except Exception:
            if dtype == torch.float32:
                raise
        else:
            return cast, drawn, dtype
    raise AssertionError("the loop returns or raises")


def _drawn(leaf: Any, dtype: torch.dtype) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return torch.rand_like(leaf, dtype=dtype)
    return leaf


@torch.no_grad()
def _randomise(model: nn.Module, draw: torch.Generator) -> None:
    """Draw all weights so that activations keep their size through the layers."""
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim > 1:
            fan_in = max(parameter[0].numel(), 1)
            drawn = torch.randn(parameter.shape, generator=draw) * (2 / fan_in) ** 0.5
        else:
            drawn = 0.5 + torch.rand(parameter.shape, generator=draw)
        parameter.copy_(drawn)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw))


def _error(a: Tensor, b: Tensor) -> float:
    """Return the largest difference beside the largest entry; infinity for NaN."""
    if not a.numel():
        return 0.0
    a, b = a.double(), b.double()
    error = float((a - b).abs().max() / a.abs().max().clamp(min=1e-300))
    return error if error == error else float("inf")
