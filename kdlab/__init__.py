"""kdlab: distil object detectors, and compare the ways of doing so.

In Python `kdlab.load`, `plan`, `run` and `report` do what the commands do; see `kdlab.api`.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdlab.api import load, plan, report, run

__all__ = ["__version__", "load", "plan", "report", "run"]


def __getattr__(name: str) -> Any:
    # the command line imports kdlab many times a run, and never this
    if name in __all__:
        from kdlab import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
