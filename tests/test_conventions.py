"""Rules of the house, held by reading the code: plugs, exports. Layers: `lint-imports`."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import regkit.penalties
from regkit.penalties import Penalty

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "regkit"

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

PLUG_ROOMS = {"penalty": "penalties", "model": "models", "data": "data"}
PLUGS = [
    (group, path)
    for group in PLUG_ROOMS
    for path in sorted((ROOT / "configs" / group).glob("*.yaml"))
]


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.append(node.module or "")
    return [name for name in found if name.split(".")[0] == "regkit"]


def test_no_annotations_are_put_off():
    for path in MODULES:
        assert "from __future__" not in path.read_text(), path


def targets(group: str, path: Path) -> list[str]:
    """Return the regkit classes that a plug's YAML names: of a penalty, under its own key."""
    config = OmegaConf.load(path)
    node = OmegaConf.select(config, path.stem) if group == "penalty" else config
    target = OmegaConf.select(node, "_target_") if node is not None else None
    return [] if target is None else [target]


@pytest.mark.parametrize(("group", "path"), PLUGS, ids=lambda x: getattr(x, "stem", x))
def test_a_yaml_has_the_module_of_its_stem(group: str, path: Path):
    if path.stem == "none":
        assert OmegaConf.load(path) == {}
        return
    (target,) = targets(group, path)
    module, _, name = target.rpartition(".")
    plug = getattr(importlib.import_module(module), name)
    assert plug.__module__ == f"regkit.{PLUG_ROOMS[group]}.{path.stem}"


@pytest.mark.parametrize("group", PLUG_ROOMS)
def test_a_plug_has_a_yaml(group: str):
    """A plug inherits from the abstract class of its room, and nothing inherits from it."""
    from regkit.data.video_data import VideoData
    from regkit.models.video_model import VideoModel

    kind = {"penalty": Penalty, "model": VideoModel, "data": VideoData}[group]
    room = f"regkit.{PLUG_ROOMS[group]}"
    paths = (PACKAGE / PLUG_ROOMS[group]).glob("*.py")
    modules = [importlib.import_module(f"{room}.{path.stem}") for path in paths]
    stems = {
        module.__name__.rpartition(".")[2]
        for module in modules
        for thing in vars(module).values()
        if isinstance(thing, type)
        and issubclass(thing, kind)
        and thing.__module__ == module.__name__
        and not getattr(thing, "__abstractmethods__", None)
        and not thing.__subclasses__()
    }
    yamls = {p.stem for p in (ROOT / "configs" / group).glob("*.yaml")} - {"none"}
    assert stems == yamls


def test_penalties_are_exported():
    for path in (ROOT / "configs" / "penalty").glob("*.yaml"):
        for target in targets("penalty", path):
            assert target.rpartition(".")[2] in regkit.penalties.__all__


def test_python_names_no_plug():
    """Which penalty, model or data set is used stands in YAML."""
    plugs = {f"regkit.{PLUG_ROOMS[g]}.{path.stem}" for g, path in PLUGS if path.stem != "none"}
    exports = PACKAGE / "penalties" / "__init__.py"
    for path in [*MODULES, ROOT / "train.py"]:
        assert path == exports or not plugs & set(imports(path)), path


def test_top_level_holds_what_was_agreed():
    agreed = {"pyproject.toml", "README.md", "regkit", "configs", "train.py", "tests"}
    agreed |= {"notebooks", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "runs"}
    mine = [p for p in ROOT.iterdir() if not (p / "pyvenv.cfg").exists()]  # an environment is not
    present = {p.name for p in mine if not p.name.startswith(".")}
    assert {p for p in present if not p.endswith(".egg-info")} <= agreed


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 8192
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).exists()]
