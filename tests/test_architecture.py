"""Rules of the code base: sizes, names, the public interface, the layers, the modules that an import loads."""

from __future__ import annotations

import ast
import importlib
import re
import statistics
import subprocess
import sys
from collections.abc import Collection, Container, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "nitro").rglob("*.py"))
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "manager"}

PUBLIC = {
    "nitro": "ANY Entity Event Namespace Offload current_delivery drain emit emit_async event on transaction",
    "nitro.infrastructure.events": (
        "ANY Emission Event Namespace default_namespace drain drain_async emit emit_async event filter_signals on"
    ),
    "nitro.infrastructure.offload": "Offload bind cancel current_delivery",
}

OPEN_TO_CONTRACT_TESTS = {
    *PUBLIC,
    "nitro.alembic",
    "nitro.cli",
    "nitro.domain.entities.base_entity",
    "nitro.errors",
    "nitro.infrastructure.database",
    "nitro.settings",
    "nitro.telemetry",
    *(f"nitro.telemetry.{path.stem}" for path in (ROOT / "nitro/telemetry").glob("*.py")),
}
"""Modules of Nitro that tests in tests/contract may import."""


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Returns the number of lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imported(tree: ast.Module, modules: Container[str]) -> Iterator[str]:
    """Yields the modules that a module imports, also inside functions and for type checking, or names in a string.

    A string counts if it is the dotted name of a module, alone or before a colon, as `import_module` and Celery accept
    it. An assignment to `__module__` does not count.
    """
    own_names = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign) and names_itself(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in modules else node.module or ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in own_names:
            name = node.value.partition(":")[0]
            if "." in name and name in modules:
                yield name


def names_itself(assignment: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__module__" for target in assignment.targets)


def circles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Returns the strongly connected components of more than one node (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
            if target in stack:
                lowest[node] = min(lowest[node], lowest[target])
        if lowest[node] == index[node]:
            position = stack.index(node)
            component, stack[position:] = stack[position:], []
            if len(component) > 1:
                components.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return components


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("module", PUBLIC)
def test_a_module_exports_exactly_its_public_names(module: str) -> None:
    """`__all__` equals the literal list of public names."""
    assert sorted(importlib.import_module(module).__all__) == PUBLIC[module].split()


def test_every_public_name_has_a_docstring() -> None:
    """Each exported class and function has a docstring of its own."""
    for module, names in PUBLIC.items():
        for name in names.split():
            if name not in ("ANY", "default_namespace"):
                assert getattr(importlib.import_module(module), name).__doc__, f"{module}.{name}"


def test_events_load_neither_celery_nor_sql() -> None:
    """`import nitro.infrastructure.events` loads no celery, SQL, pydantic or asyncio."""
    heavy = "{'celery', 'kombu', 'sqlmodel', 'sqlalchemy', 'pydantic', 'asyncio'}"
    assert run(f"import sys, nitro.infrastructure.events; print({heavy} & set(sys.modules))") == "set()\n"


def test_nitro_itself_loads_nothing() -> None:
    """`import nitro` loads no other module of Nitro; each name is loaded at its first use (PEP 562)."""
    assert run("import sys, nitro; print([m for m in sys.modules if m.startswith('nitro.')])") == "[]\n"


def test_the_plug_in_is_light() -> None:
    """`import nitro.cli`, which every `celery` command runs, loads no module that only some commands need."""
    heavy = "{'celery', 'sqlmodel', 'sqlalchemy', 'pydantic', 'matplotlib', 'xml.etree', 'asyncio'}"
    assert run(f"import sys, nitro.cli; print({heavy} & set(sys.modules))") == "set()\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_small(path: Path) -> None:
    """A file has at most 300 lines, a function body at most 40."""
    assert len(path.read_text().splitlines()) <= 300
    for function in functions(path):
        assert body_lines(function) <= 40, function.name


def test_functions_are_short() -> None:
    """The median function has at most 8 lines."""
    assert statistics.median(body_lines(function) for path in SOURCES for function in functions(path)) <= 8


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_name_has_a_meaning(path: Path) -> None:
    """No module has a name without meaning, such as `utils`."""
    assert not FORBIDDEN_NAMES & {*path.with_suffix("").parts[len(ROOT.parts) :]}


def test_no_module_shares_its_name_with_what_its_package_exports() -> None:
    """`from package import name` never means both a module and an exported object."""
    for module, names in PUBLIC.items():
        folder = ROOT.joinpath(*module.split("."))
        assert not {path.stem for path in folder.glob("*.py")} & set(names.split()), module


def listed_files() -> list[str]:
    """Returns the Python files of nitro in the layout of ARCHITECTURE.md, where folders are indented."""
    layout = (ROOT / "ARCHITECTURE.md").read_text().partition("## Layout")[2].split("```")[1]
    folders: list[tuple[int, str]] = []
    files = []
    for line in filter(None, layout.splitlines()):
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        while folders and folders[-1][0] >= indent:
            folders.pop()
        path = "".join(folder for _, folder in folders) + name
        if name.endswith("/"):
            folders.append((indent, name))
        elif path.startswith("nitro/"):
            files.append(path)
    return files


def test_the_layout_lists_each_file_once() -> None:
    """ARCHITECTURE.md names each file of nitro once; only `__init__.py` of subpackages may be missing."""
    paths = [path.relative_to(ROOT).as_posix() for path in SOURCES]
    expected = [path for path in paths if path == "nitro/__init__.py" or not path.endswith("__init__.py")]
    assert sorted(listed_files()) == sorted(expected)


def test_nothing_inside_nitro_imports_its_front_door() -> None:
    """Modules of the package import names from their modules, not from `nitro`."""
    for path in SOURCES:
        assert not re.search(r"^\s*(from nitro import|import nitro$)", path.read_text(), re.MULTILINE), path


def test_no_modules_import_each_other() -> None:
    """No imports form a circle; imports inside functions, for type checking and by name count too."""
    graph = {
        module: {name for name in imported(ast.parse(path.read_text()), MODULES) if name in MODULES} - {module}
        for module, path in MODULES.items()
    }
    assert circles(graph) == []


@pytest.mark.parametrize(
    "source",
    [
        "import p.a",
        "from p.a import thing",
        "def f() -> None:\n    from p import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a",
        "from importlib import import_module\nimport_module('p.a').wire()",
        "symbol_by_name('p.a:wire')",
    ],
)
def test_each_kind_of_import_closes_a_circle(source: str) -> None:
    """The search finds each kind of import of `p.a` in `p.c`; `p.a` imports `p.b`, and `p.b` imports `p.c`."""
    sources = {"p.a": "import p.b", "p.b": "import p.c", "p.c": source, "p.d": "import p.a"}
    graph = {
        module: [name for name in imported(ast.parse(text), sources) if name in sources]
        for module, text in sources.items()
    }
    assert circles(graph) == [["p.a", "p.b", "p.c"]]


def test_fixed_files_stay_small() -> None:
    """The composition root, the Celery app and the README stay below their limits of lines."""
    assert len((ROOT / "nitro/bootstrap.py").read_text().splitlines()) <= 60
    assert len((ROOT / "tasks/__init__.py").read_text().splitlines()) <= 30
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_celeryconfig_is_plain_celery() -> None:
    """`celeryconfig.py` imports no module of Nitro, so that deployers edit plain settings."""
    assert "nitro." not in (ROOT / "celeryconfig.py").read_text().replace("NITRO_", "")


def test_ignored_type_errors_have_a_reason() -> None:
    """Each `type: ignore` has a code and a reason; a thousand lines have at most three."""
    lines = [line for path in SOURCES for line in path.read_text().splitlines()]
    ignored = [line for line in lines if "type: ignore" in line]
    assert all(re.search(r"# type: ignore\[[a-z, -]+\]  # \w", line) for line in ignored), ignored
    assert len(ignored) <= max(3, 3 * len(lines) / 1000)


def test_each_release_has_its_commit_and_its_changes() -> None:
    """`tests/releases.txt` has a commit for each version in the changelog."""
    lines = (ROOT / "tests/releases.txt").read_text().splitlines()
    commits = dict(line.split() for line in lines if not line.startswith("#"))
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert list(commits) == versions
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in commits.values())


def modules_used_by_test(text: str) -> Iterator[str]:
    """Yields the modules of Nitro that a test imports, those in the text of a script and those that it patches too."""
    imports = r"""^[\s"']*(?:from (nitro[\w.]*) import (\([^)]*\)|.+)|import (nitro[\w.]*))"""
    for package, names, module in re.findall(imports, text, re.MULTILINE):
        submodules = [f"{package}.{name}" for name in re.findall(r"\w+", names)]
        yield from [name for name in submodules if name in MODULES] or [package or module]
    for target in re.findall(r"""setattr\(\s*["'](nitro[\w.]+)""", text):
        yield target.rpartition(".")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "tests/contract").glob("test_*.py")), ids=lambda path: path.stem)
def test_a_contract_test_uses_public_modules(path: Path) -> None:
    """A test in tests/contract imports and patches public modules only; tests/support reaches the others for it."""
    assert {*modules_used_by_test(path.read_text())} - OPEN_TO_CONTRACT_TESTS == set()


@pytest.mark.parametrize(
    "source",
    [
        "from nitro.infrastructure.outbox import claims, relay",
        "from nitro.infrastructure.outbox.claims import (\n    Claim,\n    claim,\n)",
        "def f() -> None:\n    import nitro.infrastructure.outbox.claims",
        'SCRIPT = """\nfrom nitro.infrastructure.outbox import claims\n"""',
        'SCRIPT = (\n    "from nitro.infrastructure.outbox.claims import claim\\n"\n)',
        'monkeypatch.setattr("nitro.infrastructure.outbox.claims.claim", None)',
    ],
)
def test_each_use_of_an_internal_module_is_found(source: str) -> None:
    """The search finds an internal module in an import, in a script and in a patch."""
    assert "nitro.infrastructure.outbox.claims" in {*modules_used_by_test(source)} - OPEN_TO_CONTRACT_TESTS
