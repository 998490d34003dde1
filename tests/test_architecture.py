"""What the source as a whole must keep to: one way of imports, small parts, plain names."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "topa"
MODULES = sorted(SOURCE.rglob("*.py"))

MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 70

# Data flows one way: a part imports from itself and from the parts of earlier lines only.
ORDER = [
    {"errors"},
    {"runs", "settings"},
    {"config"},
    {"weights", "linear"},
    {"tideo"},
    {"features"},
    {"data"},
    {"model"},
    {"train", "answer"},
    {"eval"},
    {"serve", "scale"},
    {"bench", "demo", "doctor"},
    {"cli"},
    {"topa"},  # the package itself, which offers the parts to users
]
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}

FORBIDDEN_NAMES = re.compile(r"(utils?|misc|helpers?|common|base_.*|.*_v\d+)")
MACHINE_PATH = re.compile(r"(?<![\w.~}])/(?:home|Users|root|work|farm|opt|mnt|tmp)/|[A-Z]:\\Users")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yaml", ".jinja", ".html", ".cfg"}


def name_of(path: Path) -> str:
    """Return the dotted name of a module file."""
    parts = ("topa", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


def part_of(name: str) -> str:
    """Return the part that a module belongs to: topa.features.memory -> features."""
    return name.split(".")[1] if "." in name else name


def imports_of(path: Path, at_import: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line, module of topa) of all imports, or of those that importing it runs."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            # from topa import errors: the module is errors, not the package.
            targets = [name if name in NAMES else base for name in inner]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == "topa":
                yield node.lineno, target


def within(name: str, package: str) -> bool:
    """Whether a module is the package itself or inside it."""
    return f"{name}.".startswith(f"{package}.")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_source_is_where_this_test_looks():
    assert {"topa.errors", "topa.runs", "topa.weights", "topa.config"} <= set(NAMES)
    found = [target for _, target in imports_of(NAMES["topa.weights"])]
    assert found == ["topa.errors", "topa.runs"]


def test_every_part_has_its_place_in_the_order():
    assert {part_of(name) for name in NAMES} <= set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_one_way(path):
    part = part_of(name_of(path))
    wrong = [
        f"line {line}: {part} imports {target}"
        for line, target in imports_of(path)
        if part_of(target) != part and RANK[part_of(target)] >= RANK[part]
    ]
    assert not wrong


def test_no_modules_import_each_other():
    """Leaves out imports within functions: a factory may name what is built on it."""
    graph = {
        # A package that offers what its modules define is not a circle.
        name: {target for _, target in imports_of(path, at_import=True) if not within(name, target)}
        for name, path in NAMES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_MODULE_LINES


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_functions_are_short(path):
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


def test_modules_have_plain_names():
    parts = {part for name in NAMES for part in name.split(".")}
    assert not [part for part in parts if FORBIDDEN_NAMES.fullmatch(part)]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_error_is_swallowed_unseen(path):
    """A bare or broad except hides faults that nobody thought of."""
    broad = {"Exception", "BaseException"}
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(kind is None or ast.unparse(kind) in broad for kind in kinds):
                wrong.append(f"line {node.lineno}")
    assert not wrong


def texts() -> Iterator[Path]:
    for folder in ("src", "tests", "docs", "configs", "benchmarks"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in TEXT_SUFFIXES)
    yield from (path for path in ROOT.iterdir() if path.suffix in TEXT_SUFFIXES)
    yield from (path for path in (ROOT / "Makefile", ROOT / ".ci" / "run") if path.is_file())


def test_no_line_holds_a_path_of_one_machine():
    found = [
        f"{relative(path)}, line {number}: {line.strip()[:80]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("open('/" + "home/ann/a.mp4')", True),
        ("cd /" + "work/main", True),
        ("https://example.org/work/", False),
        ("src/topa/work/x.py", False),
        ("folder / 'root' / 'x'", False),
        ("../shared/golden", False),
    ],
)
def test_the_search_for_paths_finds_them(line, found):
    assert bool(MACHINE_PATH.search(line)) == found
