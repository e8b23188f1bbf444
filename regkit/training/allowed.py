"""What a recipe may name that somebody else may have written: known classes, each in its place.

A checkpoint or a run folder is data. What it names is made only where regkit, torch, torchvision
or Lightning have it as a class of the kind that stands there, or where the user vouches for it.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import get_object

from regkit.errors import InputError

_ADVICE = (
    "A class of your own: give the folder of its file by --config-dir, or the name of it or of its "
    "package by --trust."
)


class Kind(NamedTuple):
    """Classes of some packages that have a base in common; without a base, functions."""

    packages: tuple[str, ...]
    base: str = ""
    never: str = ""

    def has(self, found: Any) -> bool:
        """Say whether something is defined in one of the packages, and of this kind."""
        place = getattr(found, "__module__", None)
        if not isinstance(place, str) or not any(_is_in(place, one) for one in self.packages):
            return False
        if not self.base:
            return callable(found) and not found.__name__.startswith("_")
        if not isinstance(found, type) or not issubclass(found, get_object(self.base)):
            return False
        return not self.never or not issubclass(found, get_object(self.never))


_LIGHTNING = "lightning.pytorch"
# By the place in a recipe; what stands within, such as data.augment.more[0], is of the nearest.
KINDS = {
    "data": Kind(("regkit.data",), "regkit.data.video_data.VideoData"),
    "data.augment": Kind(("regkit.data.augment",), "regkit.data.augment.Augment"),
    "data.augment.more": Kind(("torchvision.transforms.v2",), "torch.nn.Module"),
    "model": Kind(("regkit.models", "torchvision.models", "torch.nn"), "torch.nn.Module"),
    "penalty": Kind(("regkit.penalties",), "regkit.penalties.penalty.Penalty"),
    "optimizer": Kind(("torch.optim", "regkit.optim"), "torch.optim.Optimizer"),
    "scheduler": Kind(("torch.optim.lr_scheduler",), "torch.optim.lr_scheduler.LRScheduler"),
    "trainer": Kind((f"{_LIGHTNING}.trainer",), f"{_LIGHTNING}.Trainer"),
    "logger": Kind(("regkit.lightning.loggers",)),
    # Checkpoint: writes where it is told to.
    "callbacks": Kind(
        (f"{_LIGHTNING}.callbacks",),
        f"{_LIGHTNING}.Callback",
        f"{_LIGHTNING}.callbacks.Checkpoint",
    ),
}

_trusted: set[str] = set()
_folders: set[Path] = set()


def trust(*names: str) -> None:
    """Let recipes name these classes and functions, and all that these packages define."""
    _trusted.update(names)


def trust_folder(folder: Path) -> None:
    """Let recipes name what the Python files in a folder define."""
    _folders.add(folder.resolve())


def check_recipe(recipe: Mapping[str, Any], who: str, places: Sequence[str] = (*KINDS,)) -> None:
    """Refuse what is not allowed, before anything is made.

    who: names it, such as ckpt=FILE.
    places: parts of the recipe that will be made.
    Raises: InputError.
    """
    for place in places:
        _walk(place, recipe.get(place), who)


def _walk(place: str, value: Any, who: str) -> None:
    if isinstance(value, Mapping):
        if "_target_" in value:
            _check_target(place, value["_target_"], who)
        for key, inner in value.items():
            _walk(f"{place}.{key}", inner, who)
    elif isinstance(value, list | tuple | set | frozenset):
        for number, inner in enumerate(value):
            _walk(f"{place}.{number}", inner, who)
    elif isinstance(value, str) and "${" in value:
        raise InputError(
            f"{who} has {place}={value}; a recipe is stored with its values, and nothing in it is "
            "looked up. Give a checkpoint as train.py writes it."
        )


def _check_target(place: str, target: Any, who: str) -> None:
    nearest = max((kind for kind in KINDS if _is_in(place, kind)), key=len)
    if isinstance(target, str) and (_is_known(target, KINDS[nearest]) or _is_trusted(target)):
        return
    raise InputError(
        f"{who} names {target} as {place}, which is none of the classes that regkit, torch, "
        f"torchvision and Lightning have for {nearest}; it is not run. {_ADVICE}"
    )


def _is_known(target: str, kind: Kind) -> bool:
    """Say so without importing anything of other packages."""
    names = [*kind.packages, _LIGHTNING] if kind.base.startswith(_LIGHTNING) else kind.packages
    return any(_is_in(target, one) for one in names) and kind.has(_found(target))


def _is_trusted(target: str) -> bool:
    if target in _trusted:
        return True
    top = target.partition(".")[0]
    owners = [name for name in _trusted if _is_in(target, name)]
    owners += [top] if _folders and _lies_in_a_folder(top) else []
    if not owners:
        return False
    place = getattr(_found(target), "__module__", None)  # what it only imports is not its own
    return isinstance(place, str) and any(_is_in(place, name) for name in owners)


def _lies_in_a_folder(top: str) -> bool:
    """Say whether Python would import a name from a folder of --config-dir."""
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
    return any(Path(place).resolve().is_relative_to(f) for place in places for f in _folders)


def _found(target: str) -> Any:
    try:
        return get_object(target)
    except Exception:  # whatever a name is that cannot be had, it is not allowed
        return None


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def check_no_address(part: Any, who: str) -> None:
    """Refuse what would be read from the network, or by a URL, because a recipe says so.

    Raises: InputError.
    """
    for value in part.values() if isinstance(part, Mapping) else ():
        if isinstance(value, str) and "://" in value and value not in _trusted:
            raise InputError(f"{who} would read {value}; if you want that, give --trust {value}")
        check_no_address(value, who)


_NAME = re.compile(r"[\w-]+")
_WORD = re.compile(r"\+{0,2}[\w@][\w@./-]*=.*|~[\w@./-]+(=.*)?", re.DOTALL)
# Of Hydra's own options those that only say how many jobs run, and which are searched.
_HYDRA = re.compile(
    r"\+{0,2}hydra(/(sweeper|launcher)=[\w-]+"
    r"|\.sweeper\.\w+=(?!.*hydra).*"
    r"|\.launcher\.(n_jobs|batch_size|timeout_min|partition|account|qos|constraint|nodes|mem_gb"
    r"|tasks_per_node|gpus_per_node|cpus_per_task|array_parallelism)=[\w.:+-]+)",
    re.DOTALL,
)


def check_words(words: Sequence[str], name: Any, who: str) -> None:
    """Refuse words of a run folder that say more than which plugs and values a run took.

    name: of the configuration.
    Raises: InputError.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InputError(f"{who} was started with -cn {name}, which is no name of a configuration.")
    for word in words:
        key = word.lstrip("+~")
        pattern = _HYDRA if key.startswith("hydra") else _WORD
        looked_up = "${" in word and ":" in word.partition("${")[2]
        if pattern.fullmatch(word) is None or looked_up or "_target_" in word.replace("\\", ""):
            raise InputError(
                f"{who} was started with {word}, which may run or read what its writer chose. If "
                "you trust it, give that word again."
            )
