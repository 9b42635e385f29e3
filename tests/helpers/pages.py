"""The pages of the repository, which are those of the documentation site."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_PROJECT = REPOSITORY / "projects" / "ViTAdapter"

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "kernels/README.md",
    *(str(page.relative_to(REPOSITORY)) for page in sorted(_PROJECT.rglob("*.md"))),
]
"""Paths in the repository."""
