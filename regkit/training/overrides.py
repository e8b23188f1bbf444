"""The words of a command line: checked, quoted, and composed to a configuration."""

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regkit.errors import InputError
from regkit.training.config import register

CONFIGS = Path(__file__).parents[2] / "configs"

REQUIRED = object()  # the default of an option that has none


def composed(words: Sequence[str], who: str) -> Any:
    """Compose what train.py would compose of these words.

    who: asks for it.
    Raises: InputError when a word is wrong, or there are no configs.
    """
    if not (CONFIGS / "train.yaml").is_file():
        raise InputError(
            f"{who} found no {CONFIGS / 'train.yaml'}. Run it in a checkout of regkit, which "
            "holds train.py and configs."
        )
    words = quote_paths(words)
    check_overrides(words, CONFIGS)
    register()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train", words, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        cause = f" {error.__cause__}" if error.__cause__ is not None else ""
        raise InputError(f"{error}{cause}") from error


def options(words: Sequence[str], defaults: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Read key=value words of a verb; what is not given has its default.

    defaults: a value of the type that is wanted, None where any is taken, or REQUIRED.
    who: asks for them.
    Raises: InputError for a word that is no option, a value of another type, or a missing one.
    """
    found = dict(defaults)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1)
            hint = f"; close: {close[0]}=" if close else ""
            raise InputError(f"{who} got {word}{hint}. There are: {'=, '.join(defaults)}=.")
        found[key] = _value(who, key, text, defaults[key])
    missing = [key for key, value in found.items() if value is REQUIRED]
    if missing:
        raise InputError(f"{who} needs {', '.join(f'{key}=...' for key in missing)}.")
    return found


def _value(who: str, key: str, text: str, default: Any) -> Any:
    """Read a value as YAML does; where text is wanted, it is taken as it stands."""
    if isinstance(default, str) or default is REQUIRED:
        return text
    try:
        value: Any = OverridesParser.create().parse_override(f"{key}={text}").value()
    except HydraException:  # a path, or words with special letters
        value = text
    value = [str(item) for item in value] if isinstance(value, list) else value
    whole = isinstance(value, int) and not isinstance(value, bool)
    if default is None or value is None or type(value) is type(default):
        return value
    if isinstance(default, float) and whole:
        return float(value)
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}
    raise InputError(f"{who} got {key}={text}; give {wanted.get(type(default), 'a list')}.")


def check_overrides(arguments: Sequence[str], configs: Path) -> None:
    """Answer a wrong choice of a group with the list of right ones.

    Hydra does so for one choice, not for a list of them nor for settings of what is not selected.
    Raises: InputError.
    """
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise InputError(f"{error}. Quote values with special letters: \"key='a=b'\".") from error
    chosen = [c for o in parsed if o.key_or_group == "penalty" for c in _choices(o.value())]
    for override in parsed:
        _, _, name = override.key_or_group.partition("penalty.")
        name = name.partition(".")[0]
        if name and chosen and name not in chosen:
            raise _not_selected(name, [c for c in chosen if c is not None])
        folder = configs / override.key_or_group.replace(".", "/").lstrip("/")
        if override.key_or_group.startswith("hydra/"):
            _check_plugin(override.key_or_group, override.value(), folder)
            continue
        if not folder.is_dir() or override.is_delete():
            continue
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        for choice in _choices(override.value()):
            if choice is not None and choice not in known:
                close = difflib.get_close_matches(choice, known, n=1)
                hint = f"; close: {close[0]}" if close else ""
                raise InputError(
                    f"{override.key_or_group}={choice} was given{hint}. "
                    f"There are: {', '.join(known)}."
                )


def _check_plugin(group: str, choice: Any, folder: Path) -> None:
    """Say what to install where a plugin of Hydra is missing; others than ours are Hydra's to know.

    Raises: InputError.
    """
    path = folder / f"{choice}.yaml"
    if not path.is_file():
        return
    config: Any = OmegaConf.load(path)
    target = config.get("_target_") or config.hydra.launcher._target_
    package = ".".join(target.split(".")[:2])
    if package != "hydra_plugins.regkit" and not _is_there(package):
        distribution = package.partition(".")[2].replace("_", "-")
        raise InputError(
            f"{group}={choice} needs {distribution}, which is not installed. "
            'pip install -e ".[sweep]"'
        )


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote values that name existing files, so that spaces and = in them need no care."""
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        special = re.search(r"[^\w./~-]", value)
        if equals and special and "'" not in value and Path(value).expanduser().exists():
            argument = f"{key}='{value}'"
        quoted.append(argument)
    return quoted


def _not_selected(name: str, selected: Sequence[str]) -> InputError:
    return InputError(
        f"penalty.{name} has settings, but {name} was not selected; give "
        f"penalty=[{','.join([*selected, name])}]."
    )


def _choices(value: Any) -> list[str | None]:
    """Flatten a value of a group (a name, a list, a sweep) to names."""
    if value is None or isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [name for item in value for name in _choices(item)]
    inner = getattr(value, "list", None) or getattr(value, "choices", None)
    return _choices(inner) if inner is not None else [str(value)]
