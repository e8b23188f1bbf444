"""Our sweepers made known to Hydra."""

from hydra.core.plugins import Plugins

from regkit.sweeps.launch import register_launches
from regkit.sweeps.optuna import OptunaSweeper
from regkit.sweeps.sweeper import Sweeper

# Hydra takes a plugin only under this name, and finds by itself what lies in a package of it.
_PACKAGE = "hydra_plugins.regkit"


def register_sweepers() -> None:
    """Let `_target_: hydra_plugins.regkit.<class>` name a sweeper of this room."""
    for sweeper in (Sweeper, OptunaSweeper):
        Plugins.instance().class_name_to_class[f"{_PACKAGE}.{sweeper.__name__}"] = sweeper
    register_launches()
