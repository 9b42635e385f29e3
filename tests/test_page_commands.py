"""Commands and Python of all pages: each block is marked, and run, or else parsed.

A comment before a block says which: `<!-- run -->`, or `<!-- parsed: why it is not run -->`. What
is only parsed has to be right in its form: commands, options, experiments, overrides and scripts
exist, and Python imports what is there and calls it with arguments that it has.
"""

import argparse
import ast
import importlib
import inspect
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pages import PAGES, REPOSITORY
from project_configs import PROJECT, load
from torch.distributed.run import get_args_parser

import vitadapter.__main__
from vitadapter.commands.arguments import weights_of
from vitadapter.engine.overrides import apply_overrides
from vitadapter.model_zoo import config_file
from vitadapter.model_zoo.trained_models import TRAINED_MODELS

BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"run|parsed: \S.*")
EXPERIMENT = re.compile(r"(zoo://)?((?:ADE20K|Cityscapes|COCO\w*|Digits|LVIS)/\w+)")
# Commands of others, which are taken on trust.
OTHERS = ("apt", "build/detect", "cd", "cmake", "convert", "git", "node", "npm", "pip", "ruff")
OTHERS += ("pipx", "source", "trtexec", "uv", "uvx")
# Files that the reader has made: a config cannot be looked into there.
MADE = (".pth", ".onnx", ".pt2", ".yaml")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    mark: str | None
    language: str
    code: str


def _blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = (REPOSITORY / page).read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            found.append(Block(page, line, match["mark"], match["language"], match["code"]))
    return [block for block in found if block.language == language]


def each(language: str, marks: str = "") -> pytest.MarkDecorator:
    """All blocks of a language whose mark starts so."""
    blocks = [block for block in _blocks(language) if (block.mark or "").startswith(marks)]
    names = [f"{block.page}:{block.line}" for block in blocks]
    return pytest.mark.parametrize("block", blocks, ids=names)


def test_every_block_is_marked() -> None:
    blocks = _blocks("bash") + _blocks("python")
    assert len(blocks) > 25
    bare = [f"{b.page}:{b.line}" for b in blocks if not MARK.fullmatch(b.mark or "")]
    assert bare == [], "write <!-- run --> or <!-- parsed: why it is not run --> above these"


def _commands(code: str, folder: Path) -> list[list[str]]:
    """The commands of a block in their words, as the shell expands its loops and variables."""
    record = folder / "record"
    record.touch()
    scripts = [str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "scripts").iterdir()]
    names = [*scripts, *(f"./{script}" for script in scripts), *OTHERS]
    tools = ["python", "ruff", "sbatch", "torchrun", "vitadapter"]
    names += [*tools, *(f".venv/bin/{tool}" for tool in tools)]
    script = "record() { printf '%s\\0' \"$@\" '' >>\"$RECORD\"; }\n"
    script += "".join(f'function {name} {{ record {name} "$@"; }}\n' for name in names)
    # With no search path, nothing else can run.
    done = subprocess.run(
        ["/bin/bash", "-u", "-c", script + code],
        cwd=folder,
        env={"PATH": "", "RECORD": str(record)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), "a command that this test does not know"
    return [command.split("\0") for command in record.read_text().split("\0\0")[:-1]]


class ParsedError(Exception):
    """Ends a command once its arguments are parsed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


@pytest.fixture
def parsing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end with `ParsedError` when they have parsed their arguments."""
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def stop(self: Any, *given: Any, parse: Any = parse, **named: Any) -> argparse.Namespace:
            arguments = parse(self, *given, **named)
            if hasattr(arguments, "rest"):  # of `vitadapter data`, for a second parser
                return arguments
            raise ParsedError(arguments)

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    monkeypatch.chdir(REPOSITORY)


def _arguments(command: Sequence[str]) -> argparse.Namespace | None:
    """What a command of this project makes of its words; None if it has no such parser."""
    name, words = command[0].removeprefix("./").removeprefix(".venv/bin/"), list(command[1:])
    if name == "torchrun":
        with pytest.raises(ParsedError) as launched:
            get_args_parser().parse_args(words)
        args = launched.value.arguments
        prefix = ["python", "-m"] if args.module else ["python"]
        return _arguments([*prefix, args.training_script, *args.training_script_args])
    if name == "sbatch":  # whose file passes the other words on
        text = (REPOSITORY / words[0]).read_text()
        assert '-m vitadapter train "$@"' in text
        return _arguments(["vitadapter", "train", *words[1:]])
    if name == "python" and words[0] == "-m":
        name, words = words[1], words[2:]
        if name == "vitadapter.model_zoo":
            name, words = "vitadapter", ["zoo", *words]
    elif name == "python" and words[0] == "-c":
        compile(words[1], "-c", "exec")
        return None
    elif name == "python":
        name, words = words[0], words[1:]
    if name == "vitadapter" and words[0].startswith("-"):
        assert vitadapter.__main__.main(words) == 0
        return None
    if name == "vitadapter":
        with pytest.raises(ParsedError) as parsed:
            vitadapter.__main__.main(words)
        return parsed.value.arguments
    if not (REPOSITORY / name).is_file():
        # Detectron2's script has the options of ours.
        assert name in OTHERS or name == "detectron2/tools/lazyconfig_train_net.py"
        return None
    if name.endswith(".sh"):
        text = (REPOSITORY / name).read_text()
        options = [word for word in words if word.startswith("-")]
        assert [option for option in options if option not in text and '"$@"' not in text] == []
        return None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *words])
        with pytest.raises(ParsedError) as parsed:
            runpy.run_path(str(REPOSITORY / name), run_name="__main__")
    return parsed.value.arguments


def _experiment(config: str) -> str:
    """The file of an experiment below the folder of all experiments."""
    file = config_file(config)
    return f"{file.parent.name}/{file.name}"


@pytest.mark.usefixtures("parsing_only")
@each("bash")
def test_commands_parse(block: Block, tmp_path: Path) -> None:
    commands = _commands(block.code, tmp_path)
    assert commands
    for command in commands:
        for word in command[1:]:
            if found := EXPERIMENT.fullmatch(word.split("=")[-1]):
                assert config_file(found[2]).is_file()
                assert not found[1] or found[2] in TRAINED_MODELS
        arguments = _arguments(command)
        config = getattr(arguments, "config_file", None)
        if config is None or config.endswith(MADE):
            continue
        given = getattr(arguments, "opts", None) or getattr(arguments, "overrides", None) or []
        apply_overrides(load(PROJECT / "configs" / _experiment(config)), given)
        if getattr(arguments, "weights", None) == "zoo":
            assert weights_of(config, "zoo", [])


@each("bash", "run")
def test_commands_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = _commands(block.code, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, *words in commands:
        assert name == "vitadapter"
        assert vitadapter.__main__.main(words) in (None, 0)


# Packages that a page may use and that we do not install.
_NOT_OURS = ("fiftyone",)


def _imported(tree: ast.Module) -> Iterator[tuple[str, object]]:
    """The names that a block imports, and what they are; experiments beside it have none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if not alias.name.startswith(_NOT_OURS):
                    yield alias.asname or alias.name, importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert list((REPOSITORY / "projects").glob(f"*/configs/*/{node.module}.py"))
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith(_NOT_OURS):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                yield alias.asname or alias.name, getattr(module, alias.name)


def _named(node: ast.expr, names: dict[str, object]) -> object:
    """What `name` or `module.name` is, for an imported name; None for others."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = names.get(node.value.id)
        return getattr(owner, node.attr) if inspect.ismodule(owner) else None
    # L(Class)(...) is a call of the class.
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "L":
        return _named(node.args[0], names)
    return names.get(node.id) if isinstance(node, ast.Name) else None


@each("python")
def test_python_names_what_is_there(block: Block) -> None:
    tree = ast.parse(block.code)
    names = dict(_imported(tree))
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        called = _named(call.func, names)
        module = getattr(called, "__module__", None) or ""
        if not module.startswith(("detectron2.modeling", "vitadapter.")):
            continue
        known = inspect.signature(called).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
            given = {keyword.arg for keyword in call.keywords}
            assert given <= {parameter.name for parameter in known}


@each("python", "run")
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, f"{block.page}:{block.line}", "exec"), {})
    assert list(tmp_path.iterdir()) == []
