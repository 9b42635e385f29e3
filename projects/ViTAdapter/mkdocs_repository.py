"""Pages of the documentation site that lie elsewhere in the repository, and links to its files.

MkDocs calls `on_files` and `on_page_markdown`. All pages are written for a reader of the
repository: their links are paths in it. On the site, a link to another page leads there, and one
to any other file of the repository becomes plain text.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = Path(__file__).resolve().parent / "docs"

# Names on the site of what does not lie in docs/.
ELSEWHERE = {
    "index.md": "README.md",
    "deployment.md": "projects/ViTAdapter/DEPLOYMENT.md",
    "model_zoo.md": "projects/ViTAdapter/README.md",
    "pretrained.md": "projects/ViTAdapter/PRETRAINED.md",
    "operator.md": "kernels/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
PICTURES = "projects/ViTAdapter/images"

# Code is left alone: a block between fences, or between single back-quotes.
_CODE_OR_LINK = re.compile(
    r"(?P<code>^```.*?^```|(?<!`)`[^`\n]+`(?!`))|\[(?P<text>(?:`[^`\n]*`|[^\]`])*)\]\((?P<target>[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)


def source_of(name: str) -> Path:
    """The file of a page or picture of the site."""
    if name in ELSEWHERE:
        return REPOSITORY / ELSEWHERE[name]
    if name.startswith("images/"):
        return REPOSITORY / PICTURES / name.removeprefix("images/")
    return DOCS / name


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies elsewhere."""
    pictures = sorted((REPOSITORY / PICTURES).iterdir())
    for name in [*ELSEWHERE, *(f"images/{picture.name}" for picture in pictures)]:
        files.append(File.generated(config, name, abs_src_path=str(source_of(name))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns paths in the repository into links of the site."""
    here = page.file.src_uri
    names = {source_of(file.src_uri).resolve(): file.src_uri for file in files}

    def link(match: re.Match[str]) -> str:
        if match["code"] is not None or "://" in match["target"] or match["target"][0] == "#":
            return match[0]
        path, _, anchor = match["target"].partition("#")
        target = (source_of(here).parent / path).resolve()
        if target in names:
            there = os.path.relpath(names[target], Path(here).parent)
            return f"[{match['text']}]({there}{'#' if anchor else ''}{anchor})"
        # MkDocs refuses a target that does not exist, in its own words.
        return match["text"] if target.exists() else match[0]

    return _CODE_OR_LINK.sub(link, markdown)
