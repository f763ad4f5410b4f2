"""`python -m kdlab` is `kdlab`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # -m puts the working folder before all others, where somebody's queue.py would be Python's
    if not sys.flags.safe_path:
        del sys.path[0]
    from kdlab.cli.app import main

    sys.exit(main())
