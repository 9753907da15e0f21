"""The shape of the program, read from its imports: pure modules stay pure, and arrows point one way."""

from __future__ import annotations

import ast
import graphlib
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cdcsync"

PURE = (
    "model",
    "errors",
    "coalesce",
    "entries",
    "state_schema",
    "ladder",
    "verdicts",
    "remedies",
    "lineage",
    "backlog",
    "claims",
    "keyset",
    "plan",
    "ready",
    "shares",
    "backoff",
    "deletes",
    "tombstone",
    "alerts",
    "books",
    "status",
    "proof",
    "status_json",
    "status_text",
    "wal.decode",
    "wal.session",
    "mappers",
    "apply.bisect",
    "apply.rate",
    "apply.budget",
    "apply.remedies",
    "apply.account",
    "apply.pacing",
    "apply.breaker",
    "apply.sizing",
    "apply.turns",
)
"""Modules (with what is below them) that may do no IO, read no clock and know no driver."""

IMPURE = frozenset(
    [
        "asyncio",
        "concurrent",
        "http",
        "io",
        "logging",
        "multiprocessing",
        "os",
        "pathlib",
        "random",
        "select",
        "selectors",
        "shutil",
        "signal",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "urllib",
    ]
)
"""Parts of the standard library that a pure module has no business with."""

VENDORS = {
    "simple_salesforce": ("apply.salesforce",),
    "hubspot": ("apply.hubspot",),
    "asyncio_throttle": ("apply.valve",),
    "typer": ("cli", "sandbox.__main__"),
}
"""Packages that only these modules name (a module's name may go on: ``apply.hubspot_links``)."""

FORBIDDEN = {
    "model": ("",),
    "errors": ("",),
    "status": ("state", "lane", "pipeline", "service", "wal", "apply", "config", "sandbox"),
    "coalesce": ("state", "lane", "pipeline", "service", "apply", "mappers", "config", "sandbox"),
    "wal": ("apply", "lane", "pipeline", "service", "mappers", "sandbox"),
    "mappers": ("wal.source", "wal.slot", "apply", "lane", "state", "pipeline", "service", "sandbox"),
    "apply": ("wal", "lane", "state", "pipeline", "service", "mappers", "sandbox"),
    "state": ("wal", "apply", "lane", "pipeline", "service", "sandbox"),
    "claim": ("state", "wal", "apply", "lane", "pipeline", "service", "mappers", "config", "sandbox"),
    "state_mirror": ("state", "wal", "apply", "lane", "pipeline", "service", "mappers", "config", "sandbox"),
    "state_file": ("state", "wal", "apply", "lane", "pipeline", "service", "mappers", "config", "sandbox"),
    "config": ("wal", "apply", "lane", "state", "pipeline", "service", "mappers", "sandbox"),
    "lane": ("pipeline", "service", "sandbox"),
    "pipeline": ("service", "sandbox"),
    "service": ("sandbox",),
}
"""What a module (and all below it) does not import of ours; an empty name stands for everything."""


def modules() -> list[str]:
    """Name every module of the package, without the leading ``cdcsync.``; the package itself is the empty name."""
    return sorted(_name(path) for path in PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _path(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def imports(module: str, *, typing: bool = True) -> frozenset[str]:
    """Name every module that ``module`` imports anywhere, also inside functions; ``typing`` includes TYPE_CHECKING."""
    found: set[str] = set()
    tree = ast.parse(_path(module).read_text(encoding="utf-8"))
    ignored = set() if typing else {inner for node in ast.walk(tree) if _is_typing(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in ignored:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            found.update(_target(node.module or "", alias.name) for alias in node.names)
    return frozenset(found)


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _target(source: str, name: str) -> str:
    """Tell ``from package import module`` from ``from module import name``."""
    submodule = f"{source}.{name}".removeprefix("cdcsync.")
    return f"cdcsync.{submodule}" if source.startswith("cdcsync") and submodule in modules() else source


def ours(module: str, *, typing: bool = True) -> set[str]:
    """Name the modules of cdcsync that ``module`` imports, without the leading ``cdcsync.``."""
    names = imports(module, typing=typing)
    return {name.removeprefix("cdcsync").removeprefix(".") for name in names if _top(name) == "cdcsync"}


def _top(name: str) -> str:
    return name.partition(".")[0]


def below(module: str, parent: str) -> bool:
    """Tell whether ``module`` is ``parent`` or a part of it."""
    return not parent or module == parent or module.startswith(f"{parent}.")


@pytest.mark.parametrize("module", [name for name in modules() if any(below(name, pure) for pure in PURE)])
def test_pure_modules_do_no_io(module: str) -> None:
    """Neither IO, clock and logging nor a package from outside the standard library."""
    tops = {_top(name) for name in imports(module)} - {"cdcsync"}
    assert not tops & IMPURE
    assert tops <= sys.stdlib_module_names


@pytest.mark.parametrize("module", modules())
def test_vendor_packages_are_named_in_one_place(module: str) -> None:
    """A vendor's change touches its adapter and nothing else."""
    for vendor, places in VENDORS.items():
        if any(_top(name) == vendor for name in imports(module)):
            assert module.startswith(places), f"{module} imports {vendor}"


@pytest.mark.parametrize("module", modules())
def test_arrows_point_one_way(module: str) -> None:
    """Lower layers do not know the higher ones."""
    for layer, banned in FORBIDDEN.items():
        if below(module, layer):
            wrong = {name for name in ours(module) if not below(name, layer) and any(below(name, b) for b in banned)}
            assert not wrong, f"{module} imports {sorted(wrong)}"


@pytest.mark.parametrize("module", modules())
def test_only_the_command_line_is_on_top(module: str) -> None:
    """Nothing imports the command line but its entry point, and only the command line knows the demo."""
    if module not in ("cli", "__main__") and not below(module, "cli"):
        assert not any(below(name, "cli") for name in ours(module))
        assert below(module, "demo") or not any(below(name, "demo") for name in ours(module))


@pytest.mark.parametrize("module", [name for name in modules() if below(name, "sandbox")])
def test_the_sandbox_stands_alone(module: str) -> None:
    """The stand-ins share no code with what they are there to test."""
    assert all(below(name, "sandbox") for name in ours(module))


def test_there_are_no_import_cycles() -> None:
    """Every module can be loaded after the ones that it imports; a type may point back to an owner."""
    graph = {module: ours(module, typing=False) - {module} for module in modules()}
    assert list(graphlib.TopologicalSorter(graph).static_order())
