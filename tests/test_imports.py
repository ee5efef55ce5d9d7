"""Import directions between layers, import cycles, and how light `import hf_medtl` is."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hf_medtl"
# A layer may import only layers of a lower rank (and itself). Layers of equal rank do not know one another.
RANK = {
    "errors": 0,
    "version": 0,
    "common": 1,
    "data": 2,
    "evaluation": 2,
    "models": 2,
    "explain": 3,
    "predict": 4,
    "training": 5,
    "tasks": 6,
    "publish": 7,
    "runs": 8,
    "export": 9,
    "report": 9,
    "space": 10,
    "cli": 11,
    "__main__": 12,
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imported_names(path: Path) -> set[str]:
    """Modules that a file imports anywhere, functions and TYPE_CHECKING blocks included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names |= {full[name] if full[name] in MODULES else node.module for name in full}
    return names


GRAPH = {name: imported_names(path) for name, path in MODULES.items()}


def layer(module: str) -> str:
    return module.split(".")[1]


def test_layers_import_only_lower_layers():
    violations = [
        f"{module} imports {used}"
        for module, names in GRAPH.items()
        for used in names
        if module != "hf_medtl" and used in MODULES and used != "hf_medtl"
        if layer(used) != layer(module) and RANK[layer(used)] >= RANK[layer(module)]
    ]
    assert not violations, violations


def test_package_imports_nothing_around_it():
    around = ("recipes", "spaces", "benchmarks", "tests")
    assert not [(module, n) for module, names in GRAPH.items() for n in names if n.split(".")[0] in around]


def test_no_module_imports_the_package_itself():
    """`from hf_medtl import X` inside the package would hide which layer is meant."""
    assert not [module for module, names in GRAPH.items() if "hf_medtl" in names]


def test_modules_on_top_are_few():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors", "predict", "version"}


def test_no_import_cycles():
    visited: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in visited:
            for used in sorted(GRAPH[module] & MODULES.keys() - {"hf_medtl"}):
                visit(used, (*path, module))
            visited.add(module)

    for module in sorted(GRAPH.keys() - {"hf_medtl"}):
        visit(module, ())


def test_importing_the_package_is_light():
    code = "import sys, hf_medtl; sys.exit(bool({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=PACKAGE.parent).returncode == 0
