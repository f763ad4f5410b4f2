"""`python -m kdlab` is `kdlab`."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the command line without the modules of the working folder: a queue.py there is not Python's."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # -m puts it before all others, and an empty or relative part of PYTHONPATH among them
    if (here := os.getcwd()) not in named:  # noqa: PTH109
        sys.path[:] = [place for place in sys.path if place not in ("", here)]
    from kdlab.cli.app import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
