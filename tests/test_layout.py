"""The house: imports point downwards, modules and functions stay small, nothing heavy is imported too soon."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.settings import ROOT

# From top to bottom. A module may import those below it, and others of its own package; never its neighbours.
LAYERS = (
    {"app", "gunicorn_conf", "ledger.__main__", "__main__"},
    {"web", "worker", "lane"},
    {"protocols", "ops", "openapi", "pages", "security", "body", "exchange"},
    {"service"},
    {"store", "agent", "comparison", "promotion", "table"},
    {"shadows", "probation"},
    {"shadow"},
    {"observer", "copies"},
    {"live"},
    {"child"},
    {"prepare", "follower"},
    {"precompiled"},
    {
        "compile",
        "runtimes",
        "transforms",
        "batching",
        "drift",
        "ledger",
        "registry",
        "reference",
        "mlmodel",
        "agreement",
    },
    {"bundle", "kernels", "difference", "exposition", "payload"},
    {"roster"},
    {"digest", "notes", "state", "tensors", "metrics", "telemetry", "tracing", "answers", "processes", "routing"}
    | {"verdict", "counts"},
    {"settings"},
    {"errors", "entropy", "bell"},
)
KNOWS_SETTINGS = {"app", "gunicorn_conf", "ledger.__main__", "__main__"}  # everything else takes plain named arguments

MODULE_LINES, FUNCTION_LINES = 450, 45
NO_HOMES = {"utils", "util", "helpers", "common", "misc", "base", "core"}
HEAVY = {"mlflow", "sklearn", "pandas", "pyarrow", "onnxruntime", "skops", "cloudpickle", "scipy", "torch"}


def part_of(path: Path, root: Path) -> str:
    """What a file is called in `LAYERS`: a module of ours, or the package that it belongs to; a command is its own."""
    inside = path.relative_to(root).with_suffix("").parts
    if inside[-1] == "__main__":
        return ".".join(inside[1:])
    return inside[1] if inside[0] == "serving" else inside[0]


def sources(root: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    """``app.py`` and every module of ``serving`` with its part's name and its syntax tree."""
    for path in [root / "app.py", *sorted((root / "serving").rglob("*.py"))]:
        if path.is_file() and path != root / "serving" / "__init__.py":
            yield part_of(path, root), path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere, by its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of_ours(root: Path) -> set[tuple[str, str]]:
    """Which part imports which other part."""
    pairs = set()
    for part, _, tree in sources(root):
        for name in imported(tree):
            names = name.split(".")
            if names[0] == "serving" and names[1] != part:
                pairs.add((part, names[1]))
            elif names[0] in ("app", "demo", "train_model", "training") and names[0] != part:
                pairs.add((part, names[0]))
    return pairs


def floor_of(part: str) -> int | None:
    return next((floor for floor, parts in enumerate(LAYERS) if part in parts), None)


def points_downwards(importing: str, other: str) -> bool:
    upper, lower = floor_of(importing), floor_of(other)
    return upper is not None and lower is not None and upper < lower


def wrong_imports(root: Path) -> set[tuple[str, str]]:
    return {pair for pair in imports_of_ours(root) if not points_downwards(*pair)}


def too_long(root: Path) -> list[str]:
    """Modules and functions that are longer than their budget."""
    found = []
    for _, path, tree in sources(root):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES:
            found.append(f"{path.name}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    found.append(f"{path.name}: {node.name} has {length} lines")
    return found


# --- this house ------------------------------------------------------------------------------------------------------


def test_every_module_has_its_floor() -> None:
    assert {part for part, _, _ in sources(ROOT) if floor_of(part) is None} == set()


def test_no_module_has_two_floors() -> None:
    names = [name for parts in LAYERS for name in parts]
    assert sorted(names) == sorted(set(names))


def test_imports_point_downwards() -> None:
    assert wrong_imports(ROOT) == set()


def test_settings_stop_at_the_top() -> None:
    assert {part for part, other in imports_of_ours(ROOT) if other == "settings"} <= KNOWS_SETTINGS


def test_the_demo_imports_nothing_of_ours() -> None:
    tree = ast.parse((ROOT / "demo.py").read_text(encoding="utf-8"))
    assert {name.split(".")[0] for name in imported(tree)} & {"serving", "training", "app", "train_model"} == set()


def test_modules_and_functions_stay_small() -> None:
    assert too_long(ROOT) == []


def test_nothing_is_put_where_nobody_looks_for_it() -> None:
    assert {path.stem for _, path, _ in sources(ROOT)} & NO_HOMES == set()


def test_a_worker_imports_nothing_heavy_before_a_model_needs_it() -> None:
    modules = ["app", *(".".join(path.relative_to(ROOT).with_suffix("").parts) for _, path, _ in sources(ROOT))]
    wanted = sorted({name.removesuffix(".__init__") for name in modules} - {"serving.gunicorn_conf"})
    code = f"import sys\nfor name in {wanted}: __import__(name)\nprint(*sorted({HEAVY} & set(sys.modules)))"
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert got.stdout.split() == []


# --- the rules themselves --------------------------------------------------------------------------------------------


def house(root: Path, **files: str) -> Path:
    """A small one; ``a__b`` is the file ``a/b.py`` of serving."""
    for name, text in files.items():
        path = root / "app.py" if name == "app" else root / "serving" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        ({"app": "from serving.service import Service"}, set()),
        ({"service": "from serving import notes, store"}, set()),
        ({"protocols__simple": "from serving.protocols.shapes import x"}, set()),
        ({"notes": "import json, os.path"}, set()),
        ({"notes": "from serving import service"}, {("notes", "service")}),
        ({"notes": "from serving.service import Service"}, {("notes", "service")}),
        ({"notes": "import serving.service"}, {("notes", "service")}),
        ({"notes": "def f():\n    from serving.digest import x"}, {("notes", "digest")}),
        ({"notes": "if True:\n    import serving.digest as d"}, {("notes", "digest")}),
        ({"protocols__simple": "from serving.ops import x"}, {("protocols", "ops")}),
        ({"runtimes__onnx": "from serving.transforms import tabular"}, {("runtimes", "transforms")}),
        ({"service": "from app import create_app"}, {("service", "app")}),
        ({"registry": "from training.data import x"}, {("registry", "training")}),
        ({"novelty": "from serving.notes import x"}, {("novelty", "notes")}),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, files: dict[str, str], wrong: set[tuple[str, str]]) -> None:
    assert wrong_imports(house(tmp_path, **files)) == wrong


def test_a_relative_import_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="imports are absolute"):
        wrong_imports(house(tmp_path, service="from . import notes"))


def test_what_is_too_long_is_found(tmp_path: Path) -> None:
    fits = "def fits():\n" + "    pass\n" * (FUNCTION_LINES - 1)
    long = "class C:\n    def long(self):\n" + "        pass\n" * FUNCTION_LINES
    house(tmp_path, notes=fits, state=long, digest="x = 1\n" * MODULE_LINES, tensors="x = 1\n" * (MODULE_LINES + 1))
    assert too_long(tmp_path) == [
        f"state.py: long has {FUNCTION_LINES + 1} lines",
        f"tensors.py: {MODULE_LINES + 1} lines",
    ]
