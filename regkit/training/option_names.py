"""Which options a configuration has, and which one is meant where a name is wrong."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from regkit.errors import InputError

# What other programs call an option of ours, where no letters tell.
ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "device": "trainer.accelerator",
    "alpha": "lam",
    "lambda": "lam",
}
# Options that take words where their default is a number: auto, path; "0,1".
WORDY = ("lam", "devices")


def closest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that a word most likely stands for, in any case, or None."""
    lowered = {name.lower(): name for name in names}
    found = difflib.get_close_matches(word.lower(), lowered, n=1)
    return lowered[found[0]] if found else None


def defaults_of(config: Any) -> dict[str, Any]:
    """Return every option of a configuration by its full name, inner nodes among them."""
    found: dict[str, Any] = {}

    def walk(prefix: str, node: Mapping[Any, Any]) -> None:
        for key, value in node.items():
            found[f"{prefix}{key}"] = value
            if isinstance(value, dict):
                walk(f"{prefix}{key}.", value)

    walk("", OmegaConf.to_container(config, resolve=False))  # pyright: ignore[reportArgumentType]  # a dict
    return found


def known_word(override: Override, defaults: dict[str, Any]) -> str:
    """Return an override as Hydra takes it.

    An option that is an empty mapping, such as a penalty's `lam_scale`, takes any keys without a +.
    Raises: InputError when there is no such option, or text is given for a number.
    """
    key, word = override.key_or_group, str(override.input_line)
    if word[0] in "+~" and ("." in key or word[0] == "~"):
        return word
    parents = (key[:dot] for dot, letter in enumerate(key) if letter == ".")
    if any(defaults.get(parent) == {} for parent in parents):
        return f"++{word}"
    if key not in defaults:
        close = _meant(key, defaults)
        hint = f"; close: {close}" if close else ""
        raise InputError(
            f"{key} was given, and there is no such option{hint}. `regkit train --help` lists all."
        )
    if not override.is_sweep_override():
        _check_kind(key, override.value(), defaults[key])
    return f"++{word}" if defaults[key] == {} and isinstance(override.value(), dict) else word


def _meant(key: str, defaults: dict[str, Any]) -> str | None:
    """Return the option that a wrong name stands for, if that can be told."""
    leaf = key.rpartition(".")[2]
    if ELSEWHERE.get(leaf) in defaults:
        return ELSEWHERE[leaf]
    same = [name for name in defaults if name.rpartition(".")[2] == leaf.lower()]
    if same:
        return max(same, key=lambda name: difflib.SequenceMatcher(None, key, name).ratio())
    leaves = {name.rpartition(".")[2]: name for name in reversed(defaults)}
    found = closest(key, defaults)
    inner = closest(leaf, leaves)
    return found or (leaves[inner] if inner else None)


def _check_kind(key: str, value: Any, default: Any) -> None:
    """Refuse text for a number, and anything but true and false where one of them is wanted."""
    if not isinstance(value, str) or "${" in value or key.rpartition(".")[2] in WORDY:
        return
    wanted = {bool: "true or false", int: "a number", float: "a number"}.get(type(default))
    if wanted is not None:
        raise InputError(f"{key}={value} was given; give {wanted}, as in {key}={_yaml(default)}.")


def _yaml(value: Any) -> str:
    return str(value).lower()
