"""The direction of imports, and how light `import hf_medtl` is."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hf_medtl"
# What each part may use; `errors` and itself always. What is not named here sits on top and may use all.
MAY_USE = {
    "errors": set(),
    "data": set(),
    "models": set(),
    "evaluation": set(),
    "explain": {"models", "evaluation"},
    "training": {"data", "models", "evaluation"},
    "publish": {"models", "evaluation"},
    "report": {"comparison", "data", "evaluation", "publish", "training"},
    "predict": {"data", "models", "evaluation", "explain"},
    "dicom_out": {"data"},
    "regions": {"data", "explain", "predict"},
    "predictions": {"predict", "data", "dicom_out", "explain"},
    "space": {path.stem for path in PACKAGE.iterdir()} - {"cli"},  # all, but only cli imports it
}
TOP = {
    *(
        "hf_medtl",
        "hf_medtl.cli",
        "hf_medtl.comparison",
        "hf_medtl.comparison_page",
        "hf_medtl.ensemble",
        "hf_medtl.evaluate_command",
        "hf_medtl.external",
        "hf_medtl.export_command",
        "hf_medtl.fidelity",
        "hf_medtl.publish_command",
        "hf_medtl.study",
        "hf_medtl.training.folds",
        "hf_medtl.training.outcome",
        "hf_medtl.training.run",
        "hf_medtl.training.summary",
    ),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_parts_use_only_what_they_may():
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        assert not any(name.split(".")[0] in ("recipes", "spaces") for name in imports(path)), module
        if module in TOP:
            continue
        part = module.split(".")[1]
        used = {n.split(".")[1] for n in imports(path) if n.startswith("hf_medtl.") and n.count(".")} - {
            part,
            "errors",
            "__version__",
        }
        assert used <= MAY_USE[part], f"{module} imports {used - MAY_USE[part]}"


def test_importing_the_package_is_light():
    code = "import sys, hf_medtl; sys.exit(bool({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=PACKAGE.parent).returncode == 0
