"""Dependencies: declared and used, licences, minimum versions, bill of materials."""

import ast
import contextlib
import functools
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.commands import ROOT
from tests.support.dependencies import EXTRAS, clean_bill, closure, is_gpl, licence

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Loaded by name by another library, so nothing here imports them.
PLUGINS = {
    "onnxscript": "torch.onnx",
    "pylibjpeg": "pydicom, which decodes JPEG 2000 with it",
    "pylibjpeg-libjpeg": "pylibjpeg",
    "pylibjpeg-openjpeg": "pylibjpeg",
    "tensorboard": "--report_to of transformers",
    "trackio": "--report_to of transformers",
}
DISTRIBUTIONS = {module: set(map(canonicalize_name, names)) for module, names in packages_distributions().items()}


def declared(*extras: str) -> dict[str, Requirement]:
    """Return the requirements of the base or of extras, by canonical name."""
    lines = chain.from_iterable(PROJECT["optional-dependencies"][extra] for extra in extras)
    parsed = map(Requirement, lines if extras else PROJECT["dependencies"])
    return {canonicalize_name(line.name): line for line in parsed if line.name != PROJECT["name"]}


@functools.cache
def imported_modules() -> tuple[set[str], set[str]]:
    """Return the top-level modules that the package imports, and those that it names in a string alone."""
    imported, named = set(), set()
    paths = list((ROOT / "hf_medtl").rglob("*.py"))
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                named.add(node.value.partition(".")[0])  # as in require("captum.attr", ...)
    own = {"hf_medtl", *(path.stem for path in paths)}  # code that travels with weights imports its neighbour
    return imported - sys.stdlib_module_names - own, named


def provided(modules: set[str]) -> set[str]:
    return set().union(*(DISTRIBUTIONS.get(module, {canonicalize_name(module)}) for module in modules))


# Declared and used


def test_every_dependency_of_the_base_is_imported():
    imported, _ = imported_modules()
    assert declared().keys() - provided(imported) - PLUGINS.keys() == set()


def test_every_dependency_of_an_extra_is_used():
    imported, named = imported_modules()
    assert declared(*EXTRAS).keys() - provided(imported | named) - PLUGINS.keys() == set()


def test_every_import_is_declared():
    imported, _ = imported_modules()
    names = declared().keys() | declared(*EXTRAS).keys()
    assert {module for module in imported if not provided({module}) & names} == set()


# Licences


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("GPL V3.0", True),
        ("GNU General Public License v3 (GPLv3) / Other/Proprietary License", True),
        ("AGPL-3.0-only", True),
        ("GNU Affero General Public License v3", True),
        ("BSD-3-Clause AND GPL-2.0-or-later", True),
        ("MIT OR GPL-2.0-only", False),
        ("BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("LGPL-2.1-only", False),
        ("GNU Lesser General Public License v2 or later (LGPLv2+)", False),
        ("MIT", False),
    ],
)
def test_gpl_is_recognised(licence, expected):
    assert is_gpl(licence) is expected


def test_nothing_under_the_gpl_is_installed_unasked():
    """In the base, and in every extra but `jpeg`, which is asked for by name and not in `all`."""
    licences = {}
    for package in closure(set(EXTRAS) - {"jpeg"}):
        try:
            licences[package] = licence(package)
        except PackageNotFoundError:
            assert package not in closure(), package  # an extra that is not installed here
    assert len(licences) > 100
    assert {package: text for package, text in licences.items() if is_gpl(text)} == {}
    assert {package for package, text in licences.items() if text == "not stated"} == set()
    assert is_gpl(licence("pylibjpeg-libjpeg"))  # the check sees one
    assert "pylibjpeg-libjpeg" not in closure(["all"])


@pytest.mark.skipif(sys.platform != "linux", reason="the page lists what is installed on Linux")
def test_page_of_licences_lists_every_package():
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([\w.-]+) \| (.+) \| [\w, -]+ \|$", page, re.MULTILINE))
    pins = read_pins("constraints.txt")
    if any(version(package) != pins[package] for package in declared()):
        pytest.skip("other versions are installed than those of constraints.txt, and may need other packages")
    for package in closure(EXTRAS):
        with contextlib.suppress(PackageNotFoundError):  # an extra that is not installed
            assert listed.get(package) == licence(package), f"{package}: run `make licences`"


# Versions


def read_pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(" ;")[0].split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(package): number for package, number in pairs}


def test_lowest_versions_allowed_are_the_lowest_tested():
    """A bound that no set of versions fulfils, or that is not tested, promises what nobody has seen."""
    pins = read_pins("constraints-minimum.txt")
    for package, line in (declared() | declared(*EXTRAS, "test")).items():
        lowest = [bound.version for bound in line.specifier if bound.operator == ">="]
        assert lowest, f"{package} has no lowest version"
        assert Version(pins[package]) == Version(lowest[0]), f"{package}: {line}; run `make minimum`"


def test_newest_versions_tested_are_allowed():
    pins = read_pins("constraints.txt")
    for package, line in (declared() | declared(*EXTRAS, "test", "dev")).items():
        assert Version(pins[package]) in line.specifier, line


# From the advisories of each package: the first version without a known way in. Raise a bound, never lower it.
SAFE = {
    "filelock": "3.20.3",  # CVE-2026-22701: another user's symlink in place of a lock
    "gradio": "6.16.0",  # CVE-2026-28414, -28416, -48545, GHSA-j36p-7w88-g82j: files of the server, requests by it
    "jinja2": "3.1.6",  # CVE-2025-27516
    "onnx": "1.21.0",  # CVE-2026-27489, -34446, -34447: external data outside the folder of the model
    "pillow": "12.3.0",  # CVE-2026-59197, -59199, -59205 and others: writes out of bounds
    "pydicom": "3.0.2",  # CVE-2026-32711: a DICOMDIR that names files outside its folder
    "pylibjpeg-openjpeg": "2.5.0",  # OpenJPEG 2.5.4, CVE-2025-54874
    "starlette": "1.3.1",  # CVE-2025-62727, CVE-2026-48710: quadratic ranges, a forged Host in place of a path
    "timm": "1.0.26",  # before, a checkpoint that a configuration names was opened as a pickle
    "torch": "2.11",  # CVE-2025-32434, CVE-2026-24747: pickles that weights_only did not stop
    "tqdm": "4.66.3",  # CVE-2024-34062
    "transformers": "5.10.0",  # CVE-2026-4372, -5241, -9856: code and files that a configuration names
}


def test_lowest_versions_allowed_load_safely():
    pins = read_pins("constraints-minimum.txt")
    assert {name: pins[name] for name, first in SAFE.items() if Version(pins[name]) < Version(first)} == {}


def test_requirements_of_a_pushed_model_have_the_same_bounds():
    text = (ROOT / "hf_medtl" / "publish" / "hub.py").read_text(encoding="utf-8")
    lines = [Requirement(line) for line in re.findall(r'^\s+"([\w-]+>=[\w.,<]+)":', text, re.MULTILINE)]
    assert {line.name for line in lines} == {
        "opencv-python-headless", "segmentation-models-pytorch", "timm", "transformers"}  # fmt: skip
    for line in lines:
        assert line.specifier == declared()[line.name].specifier


# Bill of materials


def test_bill_of_materials_tells_what_users_get_and_not_where_it_came_from():
    project = {"url": "https://timm.example/docs", "type": "website", "comment": "from packaging metadata: Home-page"}
    mirror = {
        "url": "http://user:password@mirror.internal/timm.whl",
        "type": "distribution",
        "comment": "PackageSource: Archive",
    }
    bill = {
        "metadata": {"component": {"bom-ref": "root", "name": "hf_medtl"}},
        "components": [
            {"bom-ref": "timm==1", "name": "timm", "externalReferences": [project, mirror]},
            {"bom-ref": "gradio==6", "name": "Gradio", "properties": [{"name": "vcs", "value": "file:///home/me"}]},
            {"bom-ref": "pytest==9", "name": "pytest", "externalReferences": [project]},
        ],
        "dependencies": [
            {"ref": "root", "dependsOn": ["timm==1", "gradio==6", "pytest==9"]},
            {"ref": "pytest==9", "dependsOn": []},
            {"ref": "timm==1"},
        ],
    }
    cleaned = clean_bill(bill, {"timm"}, {"timm", "gradio"})
    assert [(part["name"], part["scope"]) for part in cleaned["components"]] == [
        ("timm", "required"), ("Gradio", "optional")]  # fmt: skip
    assert cleaned["components"][0]["externalReferences"] == [project]
    assert cleaned["dependencies"][0] == {"ref": "root", "dependsOn": ["timm==1", "gradio==6"]}
    assert [edge["ref"] for edge in cleaned["dependencies"]] == ["root", "timm==1"]
    assert not re.search("internal|password|file:", str(cleaned))
