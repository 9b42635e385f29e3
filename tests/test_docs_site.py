"""The documentation site is built without a warning, and needs nothing from elsewhere."""

import re
import subprocess
from importlib import import_module
from inspect import isclass, isfunction
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the documented command."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [repository / "scripts" / "build_docs.sh", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_all_pages_are_there(site: Path, repository: Path) -> None:
    written = (repository / "projects" / "ViTAdapter" / "docs").rglob("*.md")
    names = {f"{page.relative_to(repository / 'projects/ViTAdapter/docs')}" for page in written}
    names |= {"index.md", "model_zoo.md", "pretrained.md", "deployment.md", "operator.md"}
    assert [name for name in names if not (site / name).with_suffix(".html").is_file()] == []


def test_the_reference_has_every_public_class_and_function(site: Path) -> None:
    described = 0
    for page in sorted((site / "api").glob("*.html")):
        html = page.read_text()
        for module in re.findall(r"<h[12][^>]*><code>(vitadapter[\w.]+)</code>", html):
            public = import_module(module)
            values = {name: getattr(public, name) for name in public.__all__}
            names = [n for n, value in values.items() if isclass(value) or isfunction(value)]
            # A function that is hidden by a module of its name is described in its own place.
            places = {n: (f"{module}.{n}", f"{values[n].__module__}.{n}") for n in names}
            missing = [n for n in names if not any(f'id="{p}"' in html for p in places[n])]
            assert missing == [], f"{page.name}: {module}"
            described += len(names)
    assert described > 150


def test_links_of_the_repository_are_links_of_the_site(site: Path) -> None:
    html = (site / "index.html").read_text()
    assert 'href="model_zoo.html"' in html
    assert 'src="images/quickstart_predictions.jpg"' in html
    assert 'href="../api/' not in html
    assert ".md" not in re.findall(r'href="([^"]*)"', html)
    # The configs are files of the repository only.
    zoo = (site / "model_zoo.html").read_text()
    assert "mask_rcnn_vit_adapter_s_deit_1x.py" not in " ".join(re.findall(r'href="[^"]*"', zoo))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"'
        assert re.findall(loaded, page.read_text()) == []
