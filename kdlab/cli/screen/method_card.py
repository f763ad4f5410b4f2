"""Page of one method: its options as its docstring explains them, its pairs, its source."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kdlab.cli.screen.console import grid

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kdlab.catalog import MethodInfo

# what only some detectors have, the rarest first
_SERVED = {"roi_outputs": "two-stage", "box_distributions": "GFL", "anchor_boxes": "with anchors"}
_ON_THE_NECK = {"feats", "assignment"}


def serves(info: MethodInfo) -> str:
    """Students that a method can teach with its defaults, in a word or two."""
    needs, _ = info.needs_for({})
    if word := next((word for need, word in _SERVED.items() if need in needs), ""):
        return word
    return "any" if set(needs) <= _ON_THE_NECK else "one-stage"


def card(info: MethodInfo) -> RenderableType:
    """The method's page."""
    from rich.console import Group
    from rich.text import Text

    explained = options_explained(info.doc)
    cases = info.default_weight_when.items()
    elsewhere = [f"{_amount(weight)} with {name}: {value}" for (name, value), weight in cases]
    rows = [(Text("weight", style="bold"), _amount(info.default_weight), ", ".join(elsewhere))]
    for name, option in info.options.items():
        text = f"{explained.get(name, '')} [{option.accepted}]"
        rows.append((Text(name, style="bold"), _amount(option.default), text.strip()))
    head = Text.assemble((info.key, "bold"), "  ", info.summary)
    before = re.split(r"^(?:Args|Source|Raises):", info.doc, maxsplit=1, flags=re.MULTILINE)[0]
    prose = "\n".join(" ".join(paragraph.split()) for paragraph in before.strip().split("\n\n"))
    needs, equal = info.needs_for({})
    facts = [f"students    {serves(info)}; needs {', '.join(needs)}"]
    if equal:
        facts.append(f"the pair    must have equal {', '.join(equal)}")
    for family, values in info.defaults_for.items():
        said = ", ".join(f"{name} {_amount(value)}" for name, value in values.items())
        facts.append(f"{family:<12}{said}")
    if source := re.search(r"^Source:.*", info.doc, re.MULTILINE | re.DOTALL):
        facts += ["", " ".join(source[0].split()).replace(" Differs:", "\nDiffers:")]
    return Group(head, Text(), Text(prose), Text(), grid(rows, wrap=[2]), Text(), Text("\n".join(facts)))


def options_explained(doc: str) -> dict[str, str]:
    """Entries of a docstring's Args, each on one line."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section[1] if section else "", re.M | re.S)
    return {name: " ".join(text.split()) for name, text in entries}


def _amount(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
