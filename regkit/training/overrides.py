"""The words of a command line: checked, quoted, and composed to a configuration."""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regkit.errors import InputError
from regkit.training.allowed import trust_folder
from regkit.training.config import not_selected, register

REGEXES = ("data.group",)  # options whose values are regular expressions

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


def config_folder() -> Path:
    """Return where the YAML files are: in a wheel within the package, in a checkout beside it."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


CONFIGS = config_folder()

REQUIRED = object()  # the default of an option that has none


def composed(words: Sequence[str], who: str, own: str | None = None) -> Any:
    """Compose what `regkit train` would compose of these words.

    who: asks for it.
    own: a folder of the user's configurations and Python files (`use_own`).
    Raises: InputError when a word is wrong.
    """
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise InputError(f"{who} got {word}, which is no key=value, as penalty=l1 is.")
    folder = use_own(own)
    return composed_run(checked(words, "train", folder, swept=False), "train", folder)


def use_own(folder: str | None) -> Path | None:
    """Let Python find the files of the user's own plugs, which lie beside their YAML files.

    folder: of --config-dir; penalty/mine.yaml in it adds penalty=mine, and mine.py may define it.
    Raises: InputError when it is none.
    """
    if folder is None:
        return None
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise InputError(f"--config-dir got {folder}, which is no folder.")
    if str(path) not in sys.path:
        sys.path.append(str(path))
    trust_folder(path)
    return path


def checked(words: Sequence[str], name: str, own: Path | None, swept: bool) -> list[str]:
    """Return the words as Hydra takes them.

    name: of the configuration. own: a folder of the user's configurations. swept: whether a word
        may name several values, for a sweep.
    Raises: InputError when a word is wrong.
    """
    words = quote_paths(words)
    folders = [CONFIGS, *([own] if own else [])]
    check_overrides(words, *folders)
    register()
    with _composing():
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(words)
        if any(override.key_or_group == "hydra.searchpath" for override in parsed):
            return words  # folders that Hydra alone knows
        plugs = [o for o in parsed if _is_choice(o, folders)]
        bases = _bases(name, plugs, own)
        first = next(bases)
        swept = swept or first.hydra.mode == RunMode.MULTIRUN
        if not swept:
            _refuse_sweeps(parsed)
        known = defaults_of(first)
        if not all(override.key_or_group in known for override in parsed):
            known |= {key: value for base in bases for key, value in defaults_of(base).items()}
        asked = [o for o in parsed if o not in plugs and not o.key_or_group.startswith("hydra")]
        rewritten = {str(o.input_line): known_word(o, known) for o in asked}
    return [rewritten.get(word, word) for word in words]


def name_several(words: Sequence[str]) -> bool:
    """Say whether some word names several values, for a sweep."""
    return any(o.is_sweep_override() for o in OverridesParser.create().parse_overrides([*words]))


def composed_run(words: Sequence[str], name: str, own: Path | None) -> Any:
    """Compose checked words to the configuration of one run.

    Raises: InputError when Hydra does not take them.
    """
    with _composing():
        return _compose(words, name, own)


def one_line(error: Exception) -> str:
    """Say what Hydra refuses in one line: the first of its own, and of what it came from."""
    causes = [error] + ([error.__cause__] if error.__cause__ is not None else [])
    return ": ".join(str(cause).partition("\n")[0].rstrip(".:") for cause in causes)


@contextmanager
def _composing() -> Iterator[None]:
    """Let Hydra compose in the block; what it refuses becomes one line."""
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line(error)) from error


def _compose(words: Sequence[str], name: str, own: Path | None) -> Any:
    places = [] if own is None else [f"hydra.searchpath=['file://{own}']"]
    return compose(name, [*places, *words], return_hydra_config=True)


def _is_choice(override: Override, folders: Sequence[Path]) -> bool:
    """Say whether an override chooses a plug: its key is a folder of YAML files."""
    place = override.key_or_group.replace(".", "/")
    return any((folder / place).is_dir() for folder in folders) and not place.startswith("hydra")


def _bases(name: str, plugs: Sequence[Override], own: Path | None) -> Iterator[Any]:
    """Compose the chosen plugs, with none of their options set; then for each other choice."""
    words = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()]
        if o.is_discrete_sweep()
        else [str(o.input_line)]
        for o in plugs
    ]
    first = [choices[0] for choices in words]
    yield _compose(first, name, own)
    for place, choices in enumerate(words):
        for other in choices[1:]:
            yield _compose([*first[:place], other, *first[place + 1 :]], name, own)


def _refuse_sweeps(parsed: Sequence[Override]) -> None:
    """Refuse several values where one run is asked for.

    Raises: InputError.
    """
    for override in parsed:
        if override.is_sweep_override():
            key, _, values = str(override.input_line).partition("=")
            raise InputError(
                f"{key}={values} names several values. For a run with each of them, give -m or "
                f"`regkit sweep`; a list is written {key}=[{values}]."
            )


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
            close = closest(key, defaults)
            hint = f"; close: {close}=" if close else ""
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


def check_overrides(arguments: Sequence[str], *folders: Path) -> None:
    """Answer a wrong choice of a group with the list of right ones.

    Hydra does so for one choice, not for a list of them nor for settings of what is not selected.
    folders: of configurations.
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
            raise not_selected(name, [c for c in chosen if c is not None])
        places = [f / override.key_or_group.replace(".", "/").lstrip("/") for f in folders]
        if override.key_or_group.startswith("hydra/"):
            _check_plugin(override.key_or_group, override.value(), places[0])
        elif any(place.is_dir() for place in places) and not override.is_delete():
            known = sorted(path.stem for place in places for path in place.glob("*.yaml"))
            _check_choices(override.key_or_group, _choices(override.value()), known)


def _check_choices(group: str, choices: Sequence[str | None], known: Sequence[str]) -> None:
    for choice in choices:
        if choice is not None and choice not in known:
            close = closest(choice, known)
            hint = f"; close: {close}" if close else ""
            raise InputError(f"{group}={choice} was given{hint}. There are: {', '.join(known)}.")


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
            'pip install "regkit[sweep]"'
        )


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote regular expressions and the names of existing files, whose letters mean nothing."""
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        special = re.search(r"[^\w./~-]", value) and not re.search("['\"]", value)
        if equals and special and (key in REGEXES or Path(value).expanduser().exists()):
            argument = f"{key}='{value}'"
        quoted.append(argument)
    return quoted


def _choices(value: Any) -> list[str | None]:
    """Flatten a value of a group (a name, a list, a sweep) to names."""
    if value is None or isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [name for item in value for name in _choices(item)]
    inner = getattr(value, "list", None) or getattr(value, "choices", None)
    return _choices(inner) if inner is not None else [str(value)]


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
        raise InputError(
            f"{key}={value} was given; give {wanted}, as in {key}={str(default).lower()}."
        )
