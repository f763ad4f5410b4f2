"""`python -m kdlab` is `kdlab`."""

from __future__ import annotations

import sys

from kdlab.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
