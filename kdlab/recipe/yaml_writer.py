"""Plain data as YAML that `yaml_reader` reads back as the same data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import yaml

from kdlab.recipe.yaml_reader import SCALARS

WIDTH = 110


class _Line(dict[str, Any]):
    """A mapping that stands on one line."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer for the scalars of YAML 1.2, without references: "1e-4" is quoted, "no" is not."""

    yaml_implicit_resolvers = SCALARS

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Line,
    lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True),
)


def dump(sections: Mapping[str, Any], lines: Collection[str] = ()) -> str:
    """The YAML of a recipe, in the order of its sections.

    Args:
        sections: mappings, lists and scalars.
        lines: those of which each entry stands on a line of its own.
    """
    data = {
        name: {key: _Line(entry) if isinstance(entry, dict) else entry for key, entry in section.items()}
        if name in lines and isinstance(section, dict)
        else section
        for name, section in sections.items()
    }
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=WIDTH
    )
