from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)\n```", README, flags=re.DOTALL)


def test_two_commands_set_up_everything() -> None:
    main_job, tests = (block for block in blocks("sh") if block.startswith("python3 -m venv"))
    assert main_job.endswith("kdlab run digits/quickstart")
    assert tests in (ROOT / ".ci" / "run").read_text()


def test_recipe_in_the_readme_is_the_quickstart() -> None:
    assert blocks("yaml") == [(ROOT / "recipes" / "digits" / "quickstart.yaml").read_text().strip()]


def test_table_in_the_readme_is_the_committed_one() -> None:
    # not the file itself: whoever ran the main job here has a table of their own there
    command = ["git", "-C", str(ROOT), "show", "HEAD:results/digits/quickstart.md"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode:
        pytest.skip("this is no checkout")
    table = [line for line in shown.stdout.splitlines() if line.startswith("|")]
    assert "\n".join(table) in README


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert all((page.parent / target).exists() for target in targets)
