"""Which parameters and modules a penalty acts on, and why the rest are left out."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeGuard

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from regkit.errors import InputError

WEIGHTED = (
    _ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)

PARAMETRIZED = (
    "parametrized, its parts are no weights by themselves; name one in `params` if it is meant (of "
    'weight_norm "*.original0" or "*.weight_g", the length of each filter: L1 on it is the group '
    "lasso)"
)

SPECTRAL = (
    "divided by its largest singular value, so that its scale means nothing: a penalty on it would "
    "shrink it without end and change no output; name it in `params` if it is meant"
)

# Modules around a module: its name has a part for them, which is left out.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module")

Selector = str | type[nn.Module]


@dataclass(frozen=True)
class Entry:
    """One parameter of a model: chosen, or the reason why not."""

    parameter: nn.Parameter
    name: str
    module: nn.Module
    chosen: bool
    why: str


def clean_name(name: str) -> str:
    """Strip what `torch.compile`, DDP and FSDP put into names."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(parts).removeprefix("module.")


def select_parameters(model: nn.Module, params: Selector | Sequence[Selector] = ()) -> list[Entry]:
    """Say of every parameter whether `params` chooses it, and why; a tied one counts once.

    params: as in `WeightPenalty`. Without selectors: all weights of convolution, linear, attention
        and recurrent layers. A name that is nowhere at the top is looked for deeper: "fc" finds
        "net.fc".
    Raises: InputError when a selector matches nothing, or a parameter has no shape yet.
    """
    params = (params,) if isinstance(params, str | type) else params
    entries = list(_all_weights(model))
    wanted = [_found(s, entries, model) for s in params if not _leaves_out(s)]
    unwanted = [_found(s[1:], entries, model) for s in params if _leaves_out(s)]
    if not params:
        return entries
    chosen = []
    for e in entries:
        hits = [s for s in wanted if _matches(s, e)]
        misses = [s for s in unwanted if _matches(s, e)]
        if misses:
            verdict = (False, f"left out by !{_text(misses[0])}")
        elif hits:
            verdict = (True, f"on {_text(hits[0])}")
        else:
            verdict = (False, "not in `params`") if wanted else (e.chosen, e.why)
        chosen.append(replace(e, chosen=verdict[0], why=verdict[1]))
    return chosen


def weights(
    model: nn.Module, params: Selector | Sequence[Selector] = ()
) -> dict[str, nn.Parameter]:
    """Return the chosen parameters by name."""
    return {e.name: e.parameter for e in select_parameters(model, params) if e.chosen}


def table(entries: Sequence[Entry], selections: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Lay out, a line a parameter, what the selections by name say of it.

    entries: all parameters, with the reason that holds where no penalty says another.
    """
    rows = [("parameter", "shape", "entries", "penalty")]
    for place, entry in enumerate(entries):
        p = entry.parameter
        said = {name: found[place] for name, found in selections.items()}
        chosen = [f"{name} ({e.why})" for name, e in said.items() if e.chosen]
        why = next(iter(said.values()), entry).why
        what = " + ".join(chosen) or f"- ({why})"
        shape = "x".join(map(str, p.shape)) or "()"
        frozen = "" if p.requires_grad else " (frozen)"
        rows.append((entry.name, shape, f"{p.numel():,}", what + frozen))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def find_module(model: nn.Module, name: str, asker: str) -> nn.Module:
    """Return the submodule `name`, or the only one whose name ends so ("layer2", "net.layer2").

    Of a compiled one the module within, which alone runs where a whole is compiled around it.
    Raises: InputError with close names.
    """
    modules = {clean_name(n): m for n, m in model.named_modules()}
    modules.pop("")
    deeper = [n for n in modules if n.endswith(f".{name}")]
    if name not in modules and len(deeper) == 1:
        name = deeper[0]
    if name not in modules:
        raise InputError(
            f"{asker} got module={name!r}, which names no module{_close(name, modules)}. "
            "Give a name from model.named_modules()."
        )
    return modules[name]


def declared_embeddings(model: nn.Module) -> str | None:
    """Return the name that the model, or the first submodule with one, gives its embeddings."""
    for name, module in model.named_modules():
        declared = getattr(module, "frame_embeddings", None)
        if isinstance(declared, str):
            return clean_name(f"{name}.{declared}" if name else declared)
    return None


def embedding_module(model: nn.Module, of: str | None, asker: str) -> nn.Module:
    """Return the module of that name, or the one whose outputs the model declares to be embeddings.

    asker: whom an error speaks of.
    Raises: InputError when there is none.
    """
    name = of or declared_embeddings(model)
    if name is None:
        raise InputError(
            f"{asker} got no `module`, and {type(model).__name__} does not say where its frame "
            "embeddings are. Give module=<a name from model.named_modules()>."
        )
    return find_module(model, name, asker)


def _all_weights(model: nn.Module) -> Iterable[Entry]:
    """Yield every parameter, chosen where it is a weight."""
    modules = dict(model.named_modules())
    for full_name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(f"Parameter {full_name!r} has no shape yet; run one forward first.")
        owner_name, _, leaf = full_name.rpartition(".")
        owner = modules[owner_name]
        reason = _not_a_weight(owner, leaf, parameter)
        yield Entry(parameter, clean_name(full_name), owner, reason is None, reason or "weight")


def _not_a_weight(owner: nn.Module, leaf: str, parameter: nn.Parameter) -> str | None:
    """Return why a parameter is left out by default, or None where it is a weight."""
    if leaf.startswith("bias") or leaf.endswith("_bias"):
        return "bias"
    if isinstance(owner, NORMS):
        return "normalisation"
    if isinstance(owner, EMBEDDINGS):
        return "embedding"
    if type(owner).__name__ == "ParametrizationList" or leaf in ("weight_g", "weight_v"):
        return PARAMETRIZED
    if leaf == "weight_orig" and hasattr(owner, "weight_u"):
        return SPECTRAL
    is_weight = leaf.startswith("weight") or leaf.endswith("_weight")
    if isinstance(owner, WEIGHTED) and is_weight and parameter.ndim >= 2:
        return None
    return "no weight of a convolution, linear, attention or recurrent layer"


def _leaves_out(selector: Selector) -> TypeGuard[str]:
    return isinstance(selector, str) and selector.startswith("!")


def _text(selector: Selector) -> str:
    return selector if isinstance(selector, str) else selector.__name__


def _found(selector: Selector, entries: Sequence[Entry], model: nn.Module) -> Selector:
    """Return the selector, looking deeper where needed; InputError where it matches nothing."""
    deeper = f"*.{selector}" if isinstance(selector, str) else selector
    for candidate in (selector, deeper):
        if any(_matches(candidate, e) for e in entries):
            return candidate
    raise _unmatched(selector, model)


def _matches(selector: Selector, entry: Entry) -> bool:
    """Say whether one selector chooses one parameter (`entry` without selectors).

    A type chooses all but biases, a module name the weights below it, and a parameter name (its
    last part has letters that match the parameter's own) just what it says.
    """
    if isinstance(selector, type):
        return isinstance(entry.module, selector) and entry.why != "bias"
    if any(c.__name__ == selector for c in type(entry.module).__mro__):
        return entry.why != "bias"
    name = entry.name
    owner_name, _, leaf = name.rpartition(".")
    leaf_glob = selector.rpartition(".")[2]
    if leaf_glob.strip("*?") and fnmatchcase(name, selector) and fnmatchcase(leaf, leaf_glob):
        return True
    return entry.chosen and any(fnmatchcase(p, selector) for p in _prefixes(owner_name))


def _prefixes(owner_name: str) -> Iterable[str]:
    parts = owner_name.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def _unmatched(selector: Selector, model: nn.Module) -> InputError:
    if isinstance(selector, type):
        return InputError(
            f"params={selector.__name__} matches no parameter: {type(model).__name__} has no such "
            "layer. Give a type from model.modules()."
        )
    modules = list(model.named_modules())
    known = (
        {clean_name(n) for n, _ in modules}
        | {clean_name(n) for n, _ in model.named_parameters()}
        | {type(m).__name__ for _, m in modules}
    )
    return InputError(
        f"params={selector!r} matches no weight{_close(selector, known)}. Give "
        "names or globs from model.named_modules() or model.named_parameters(), or module types."
    )


def _close(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [k for k in known if k], n=3, cutoff=0.5)
    return f"; close: {', '.join(map(repr, close))}" if close else ""
