"""Table -> JSON: all that is known of each cell."""

from __future__ import annotations

import json

from kdlab.reporting.tables import Table


def to_json(table: Table) -> str:
    """The table as JSON, numbers not rounded beside the text that people read."""
    return json.dumps(table.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
