"""The documents name what is there: files, anchors, commands with their options, Python names."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from topa.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TEXT = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND_LINE = typer.main.get_command(app)


def blocks(text: str, language: str) -> Iterator[str]:
    """Yield what stands in the fenced blocks of one language."""
    return (body for name, body in BLOCK.findall(text) if name == language)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, spelt as GitHub does."""
    heads = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def console_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of every `$ topa ...` line; comments and what follows a pipe are left out."""
    for block in blocks(text, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ topa "):
                yield shlex.split(line[2:].split(" | ")[0], comments=True)


def complaint(words: list[str]) -> str | None:
    """Return what is wrong with a command line, or None."""
    command: Any = COMMAND_LINE
    rest = words[1:]
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return f"no command {rest[:1]}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    unknown = [word for word in rest if word.startswith("-") and word.split("=")[0] not in known]
    return f"no option {unknown}" if unknown else None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", TEXT[path]))
    broken = []
    for target in targets:
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_their_options_exist(path):
    found = {" ".join(words): complaint(words) for words in console_lines(TEXT[path])}
    assert not {line: what for line, what in found.items() if what}


def test_a_wrong_command_line_is_noticed():
    assert complaint(["topa", "asks"]) == "no command ['asks']"
    assert complaint(["topa", "ask", "a.mp4", "?", "--opinion", "b"]) == "no option ['--opinion']"
    assert complaint(["topa", "ask", "a.mp4", "?", "--option", "b"]) is None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_compile_and_import_names_that_exist(path):
    missing = []
    for block in blocks(TEXT[path], "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "topa":
                module = importlib.import_module(str(node.module))
                missing += [name.name for name in node.names if not hasattr(module, name.name)]
    assert not missing


def test_every_page_of_the_documents_is_named_in_the_readme():
    pages = {path.name for path in DOCUMENTS if path.parent.name == "docs"}
    assert pages <= set(re.findall(r"\]\(docs/([\w-]+\.md)", TEXT[ROOT / "README.md"]))
