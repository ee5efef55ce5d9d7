"""Words: the code and its texts use the field's standard terms (docs/design.md, Words)."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_medtl"
# Word -> the term to use, in identifiers, texts, templates and scripts. Each is searched as a whole part of a name.
NOT_USED = {
    "picture": "image",
    "pictures": "images",
    "chances": "probabilities",
    "rival": "paired run",
    "rivals": "paired runs",
    "shelf": "registry",
    "wish": "request",
    "wishes": "options",
    "nursery": "process pool",
}
# As names of variables, parameters, functions and fields they say nothing.
NOT_NAMES = ("its", "found", "place", "known", "said", "told", "kinds", "several", "hand", "hands", "acts", "stories")
# What users' files, published folders and programs hold: file -> the words that stay there, and why.
COMPATIBLE: dict[str, dict[str, str]] = {
    "cli/data.py": {"pictures": "option --pictures"},
    "cli/export.py": {"pictures": "key of export.json"},
    "data/audit.html.jinja": {"pictures": "key of audit.json"},
    "data/audit.py": {"pictures": "key of audit.json"},
    "data/audit_page.py": {"pictures": "key of audit.json"},
    "data/cache.py": {"pictures": "folder of the cache"},
    "data/loading.py": {"picture": "key of results.json"},
    "data/phantoms.py": {"pictures": "key of phantoms.json"},
    "data/readers.py": {"picture": "name of earlier releases"},
    "data/sources.py": {"picture": "name of earlier releases"},
    "explain/report.py": {"picture": "key of explanations.json"},
    "export/export.py": {"pictures": "key of export.json"},
    "export/verification.py": {"pictures": "key of export.json"},
    "models/processor.py": {"pictures": "key of a travelling processor's counts"},
    "publish/exports.md.jinja": {"pictures": "key of export.json"},
    "publish/neutral_files.py": {"picture": "key of explanations.json"},
    "report/slides.py": {"picture": "python-pptx's add_picture"},
    "runs/preprocessing.py": {"pictures": "key of a travelling processor's counts"},
    "runs/study_summary.py": {"pictures": "key of study.json"},
    "space/components.py": {"picture": "CSS id"},
    "space/mcp_tools.py": {"pictures": "key of a tool's answer"},
    "space/space.css": {"picture": "CSS id"},
    "tasks/classification.py": {"pictures": "key of results.json"},
}
# Names of fields and parameters that users write.
COMPATIBLE_NAMES = {"data/dataset_spec.py": {"several"}}

SOURCES = sorted(
    path
    for path in PACKAGE.rglob("*")
    if path.suffix in {".py", ".jinja", ".js", ".css", ".md"} and "__pycache__" not in path.parts
)


def words_of(text: str) -> set[str]:
    """Lower-case words, also the parts of snake_case and CamelCase names."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return set(re.findall(r"[a-z]+", apart.lower()))


def names_of(tree: ast.AST) -> set[str]:
    """Names that a module gives to functions, classes, parameters, variables and fields."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_uses_standard_terms(path: Path):
    used = words_of(path.read_text(encoding="utf-8")) & NOT_USED.keys()
    allowed = COMPATIBLE.get(path.relative_to(PACKAGE).as_posix(), {})
    wrong = {word: NOT_USED[word] for word in used - allowed.keys()}
    assert not wrong, f"use instead: {wrong}"
    assert allowed.keys() <= used, f"no longer there, so no longer to be allowed: {allowed.keys() - used}"


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.suffix == ".py"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_names_say_what_they_are(path: Path):
    names = names_of(ast.parse(path.read_text(encoding="utf-8")))
    wrong = names & {*NOT_NAMES} - COMPATIBLE_NAMES.get(path.relative_to(PACKAGE).as_posix(), set())
    assert not wrong, f"call them by what they are: {wrong}"


def test_docs_use_standard_terms():
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "model_cards").glob("*.md")):
        if path.name in ("design.md", "traps.md"):  # which name the words
            continue
        wrong = {word: NOT_USED[word] for word in words_of(path.read_text(encoding="utf-8")) & NOT_USED.keys()}
        assert not wrong, f"{path.name}: use instead: {wrong}"
