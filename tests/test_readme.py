"""The pages at the top level name only what is there."""

import re
from pathlib import Path

import pytest

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w/])(?:projects|scripts|configs|tests|vitadapter|kernels)/[\w/.]*\w")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_resolve(page: str, repository: Path) -> None:
    targets = [link for link in LINK.findall((repository / page).read_text()) if "://" not in link]
    assert [t for t in targets if not t.startswith("#") and not (repository / t).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str, repository: Path) -> None:
    named = FILE.findall((repository / page).read_text())
    assert named or page == "CHANGELOG.md"
    assert [name for name in named if not (repository / name).exists()] == []


def test_readme_has_the_two_commands_of_a_clone(repository: Path) -> None:
    clone = (repository / "README.md").read_text().partition("## From a clone")[2]
    commands = [line.split("#")[0].strip() for line in clone.split("```")[1].splitlines()[1:]]
    assert commands == ["./scripts/quickstart.sh", "./scripts/test.sh"]
