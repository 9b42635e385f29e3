"""The pages of the repository name only what is there."""

import re
from pathlib import Path

import pytest
from pages import PAGES

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w/])(?:projects|scripts|configs|tests|vitadapter|kernels)/[\w/.]*\w")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_resolve(page: str, repository: Path) -> None:
    text = re.sub(
        r"^```.*?^```", "", (repository / page).read_text(), flags=re.MULTILINE | re.DOTALL
    )
    targets = [link for link in LINK.findall(text) if "://" not in link]
    assert [target for target in targets if not _exists(target, page, repository)] == []


def _exists(target: str, page: str, repository: Path) -> bool:
    """Whether a file, and the heading of it that a link may name, are there."""
    name, _, anchor = target.partition("#")
    file = (repository / page).parent / name if name else repository / page
    if not anchor:
        return file.exists()
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str, repository: Path) -> None:
    text = re.sub(r"\]\([^)\s]+\)", "]", (repository / page).read_text())  # links are tested above
    named = FILE.findall(text)
    assert [name for name in named if not (repository / name).exists()] == []


def test_readme_has_the_two_commands_of_a_clone(repository: Path) -> None:
    clone = (repository / "README.md").read_text().partition("## From a clone")[2]
    commands = [line.split("#")[0].strip() for line in clone.split("```")[1].splitlines()[1:]]
    assert commands == ["./scripts/quickstart.sh", "./scripts/test.sh"]
