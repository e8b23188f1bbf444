"""A smaller model with equal outputs: all that the zeros make superfluous is cut out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regkit.errors import InputError
from regkit.pruning.counts import num_bytes, num_flops, num_parameters
from regkit.pruning.dead_channels import find_dead_channels
from regkit.pruning.latency import latency
from regkit.pruning.latency_search import fastest as fastest_widths
from regkit.pruning.low_rank import split_low_rank
from regkit.pruning.remove import rounded
from regkit.structure.channels import Coupling
from regkit.structure.coupling import couple
from regkit.structure.removal import remove_channels
from regkit.structure.replica import check_runs, fixed_seed, outputs, replica, unwrapped
from regkit.timing import Quartiles

Model = TypeVar("Model", bound=nn.Module)

TOLERANCE = 1e-5  # beside the largest output; rounding through deep networks stays below 2e-6
RANDOM_INPUTS = 3


@dataclass(frozen=True)
class Sizes:
    """What a model holds and computes.

    flops: of one run on the example, two for each multiplication with its addition.
    latency_s: of one run on the example, measured; None where it was not.
    """

    parameters: int
    bytes: int
    flops: int
    latency_s: Quartiles | None = None


@dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` did.

    channels: (left, all) by the name of the set.
    ranks: (left, full) by the name of each layer that was written as two thin ones.
    max_difference: between outputs of both models, the largest.
    max_output: the largest output.
    num_inputs: how many inputs both were compared on.
    notes: what was not cut, with the reasons.
    """

    before: Sizes
    after: Sizes
    channels: Mapping[str, tuple[int, int]]
    max_difference: float
    max_output: float
    num_inputs: int
    ranks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [(name, f"{left:,} of {whole:,}") for name, (left, whole) in self.channels.items()]
        rows += [(f"{name}, rank", f"{r:,} of {full:,}") for name, (r, full) in self.ranks.items()]
        a, b = self.after, self.before
        rows += [
            ("parameters", _ratio(a.parameters, b.parameters, f"{a.parameters:,}")),
            ("MiB", _ratio(a.bytes, b.bytes, f"{a.bytes / 2**20:.3g}")),
            ("FLOPs", _ratio(a.flops, b.flops, f"{a.flops:,}")),
        ]
        if a.latency_s is not None and b.latency_s is not None:
            told = f"{_ms(a.latency_s)}, was {_ms(b.latency_s)}"
            rows.append(("latency", _ratio(a.latency_s.median, b.latency_s.median, told)))
        told = f"{self.max_difference:.1e} on {self.num_inputs} inputs"
        rows.append(("difference", f"{told}, outputs up to {self.max_output:.3g}"))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {text}" for name, text in rows]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])


def shrink(
    model: Model,
    example: Any,
    *,
    inputs: Iterable[Any] = (),
    tolerance: float = TOLERANCE,
    fastest: bool = False,
    timed: bool = True,
    multiple_of: int = 1,
    coupling: Coupling | None = None,
) -> tuple[Model, ShrinkReport]:
    """Copy the model, in eval mode, without the channels that its zeros make useless.

    Removed are coupled channels (`couple`) that nothing reads or nothing writes, hidden units of
    recurrent layers and attention heads among them, and dead filters whose batch norm emits a
    constant, where the next layer can take that into its bias. What cannot go is in the notes.
    One channel of each set stays. Then layers of low rank (`penalty=nuclear`) are written as two
    thin ones, where that is faster. The model itself stays as it is.

    The outputs of the copy are compared with the model's on the example, on random inputs of its
    shape and on `inputs`.

    example: an input as in training, a batch of 1; latency is measured on it.
    inputs: more of them, real ones, to compare outputs on.
    tolerance: the largest difference of outputs allowed, relative to the largest output.
    fastest: measure widths at and above the number of live channels, and keep the fastest: dead
        channels stay where they make the model faster. Takes a minute or more.
    timed: measure the latency before and after, and which layers of low rank are faster as two;
        False splits those that then compute less.
    multiple_of: dead channels stay, so that widths are multiples of it, for the sake of hardware.
    coupling: of this model, from `couple`, where it is known already.
    Returns: the copy, and what was removed, which prints as a table.
    Raises: InputError when the model cannot be copied, does not run on the example, or the outputs
        differ by more than the tolerance; then nothing is returned.
    """
    if not 0 < tolerance < 1:
        raise InputError(f"shrink got tolerance={tolerance}; give a share of the largest output.")
    if multiple_of < 1:
        raise InputError(f"shrink got multiple_of={multiple_of}; give 1 or more.")
    inner = unwrapped(model)
    whole = replica(inner)
    check_runs(whole, example, "shrink")
    if coupling is None:
        coupling = couple(inner, example)
    small = replica(inner)
    dead, stay = find_dead_channels(small, example, coupling)
    if fastest:
        dead = fastest_widths(small, dead, example)
    dead = rounded(dead, multiple_of)
    remove_channels(small, dead)
    ranks, kept_whole = split_low_rank(small, example, timed)
    found = [_difference(whole, small, x) for x in _all_inputs(example, inputs)]
    worst, largest = max(d for d, _ in found), max(size for _, size in found)
    if not worst <= tolerance * max(largest, 1e-30):
        raise InputError(
            f"shrink made a model whose outputs differ by {worst:.2e}, of outputs up to "
            f"{largest:.3g}; allowed: {tolerance:g} of that. Nothing was kept. If the model draws "
            "random numbers or keeps a state between runs, turn that off; else give a larger "
            "tolerance if such rounding does no harm."
        )
    before, after = _sizes(whole, example), _sizes(small, example)
    if timed:
        times = latency({"before": whole, "after": small}, example)
        before = Sizes(before.parameters, before.bytes, before.flops, times["before"])
        after = Sizes(after.parameters, after.bytes, after.flops, times["after"])
    report = ShrinkReport(
        before=before,
        after=after,
        channels={c.name: (int((~mask).sum()), len(mask)) for c, mask in dead},
        max_difference=worst,
        max_output=largest,
        num_inputs=len(found),
        ranks=ranks,
        notes=(*coupling.notes, *stay, *kept_whole),
    )
    return cast(Model, small), report


def _sizes(model: nn.Module, example: Any) -> Sizes:
    return Sizes(num_parameters(model), num_bytes(model), num_flops(model, example))


def _all_inputs(example: Any, inputs: Iterable[Any]) -> Iterator[Any]:
    yield example
    draw = torch.Generator().manual_seed(0)
    for _ in range(RANDOM_INPUTS):
        yield tree_map(_drawn(draw), example)
    yield from inputs


def _drawn(draw: torch.Generator) -> Callable[[Any], Any]:
    def drawn(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=draw).to(leaf.device, leaf.dtype)
        return leaf

    return drawn


def _difference(whole: nn.Module, small: nn.Module, x: Any) -> tuple[float, float]:
    """Return the largest difference of outputs, infinity for NaN, and the largest output."""
    first, second = _run(whole, x), _run(small, x)
    if [o.shape for o in first] != [o.shape for o in second]:
        return float("inf"), 0.0
    worst = largest = 0.0
    for a, b in zip(first, second, strict=True):
        if a.numel():
            difference = float((a.double() - b.double()).abs().max())
            worst = max(worst, difference if difference == difference else float("inf"))
            largest = max(largest, float(a.abs().max()))
    return worst, largest


def _run(model: nn.Module, x: Any) -> list[Tensor]:
    # TF32 rounds to 10 bits, and otherwise in the cut model than in the whole one.
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad(), fixed_seed(model), _exact_convolutions():
            return outputs(model, x)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _exact_convolutions() -> Any:
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)


def _ms(time: Quartiles) -> str:
    return f"{1e3 * time.median:.3g} ms [{1e3 * time.low:.3g}, {1e3 * time.high:.3g}]"


def _ratio(after: int | float, before: int | float, told: str) -> str:
    return f"{told} ({after / before:.1%})" if before else told
