"""Dependencies: their licences, the lowest versions that are tested, and the software bill of materials.

    python -m tests.support.dependencies licences  # of what is installed -> docs/dependencies.md
    python -m tests.support.dependencies minimum   # lowest versions allowed -> constraints-minimum.txt
    python -m tests.support.dependencies sbom      # of what is installed -> build/sbom.cdx.json (CycloneDX)

`licences` and `sbom` need every extra installed: `pip install -c constraints.txt -e ".[all,dev]"`.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = sorted(PROJECT["optional-dependencies"].keys() - {"all", "dev", "test"})  # of users
# What packages do not say in their metadata.
LICENCES = {"cuda-toolkit": "LicenseRef-NVIDIA-Proprietary"}


def requirements(package: str, extra: str = "") -> list[Requirement]:
    """Return what a package, installed or this one, needs here: alone, or what one of its extras adds."""
    if package == canonicalize_name(PROJECT["name"]):
        lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    else:
        try:
            lines = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            return []
    needed = map(Requirement, lines)
    return [line for line in needed if line.marker is None or line.marker.evaluate({"extra": extra})]


def closure(extras: Iterable[str] = ()) -> set[str]:
    """Return the names of all packages that this one brings on this platform, with the given extras."""
    this = canonicalize_name(PROJECT["name"])
    todo: list[tuple[str, str]] = [(this, extra) for extra in ("", *extras)]
    seen: set[tuple[str, str]] = set()
    while todo:
        package, extra = todo.pop()
        if (package, extra) not in seen:
            seen.add((package, extra))
            for line in requirements(package, extra):
                todo += [(canonicalize_name(line.name), name) for name in ("", *line.extras)]
    return {package for package, _ in seen} - {this}


def licence(package: str) -> str:
    """Return the licence of an installed package, as its metadata state it.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    metadata: Any = importlib.metadata.metadata(package)
    stated = [line.strip() for line in (metadata["License"] or "").splitlines()]
    classifiers = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License")]
    if metadata["License-Expression"]:
        return str(metadata["License-Expression"])
    if len(stated) == 1 and len(stated[0]) <= 40 and stated[0] != "UNKNOWN":
        return stated[0]
    return " / ".join(classifiers) or LICENCES.get(package, "not stated")


def is_gpl(licence: str) -> bool:
    """Return True if a licence leaves no choice but the GPL or the AGPL, without an exception for what links to it."""
    text = re.sub(r"\bL(?:esser )?GPL|Lesser General Public|Library General Public", "", licence)
    required = [part for part in re.split(r"\bAND\b", text) if not re.search(r"\bOR\b|exception", part)]
    return any(re.search(r"GPL|General Public License", part) for part in required)


def licences_page() -> str:
    """Return docs/dependencies.md: each package, its licence, and what needs it."""
    base = closure()
    users = {package: ["base"] for package in base}
    for extra in EXTRAS:
        for package in closure([extra]) - base:
            users.setdefault(package, []).append(extra)
    rows = [f"| {name} | {licence(name)} | {', '.join(users[name])} |" for name in sorted(users)]
    return PAGE.format(rows="\n".join(rows))


PAGE = """# Dependencies and their licences

What `pip install hf_medtl` installs (base), and what each extra adds, with everything that those packages need in turn.
The licences are those that the packages state themselves; a wheel may carry further libraries (OpenCV's brings FFmpeg,
under the LGPL-2.1). No package of the base, nor of `[all]`, is under the GPL or the AGPL. Only the extra `[jpeg]` is:
it is installed when you ask for it by name.

On Linux, PyTorch brings NVIDIA's CUDA libraries (`nvidia-*`, `cuda-*`), which are not open source. PyTorch's index of
CPU wheels has none of them.

`make licences` writes this page from what is installed. `make sbom` writes all of it, with versions and what needs
what, to `build/sbom.cdx.json` in CycloneDX format; every release has it as a file.

| package | licence | needed by |
|---|---|---|
{rows}
"""


def minimum_versions() -> str:
    """Return constraints for the lowest versions that pyproject.toml allows, and the newest of what those need."""
    command = ["uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--python-version", "3.11",
               "--no-header", "--no-annotate", "--extra", "all", "--extra", "test", "pyproject.toml"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return f"# By `make minimum`, for Python 3.11 on Linux.\n{done.stdout}"


def bill_of_materials() -> dict[str, Any]:
    """Return the software bill of materials of this package with its extras, in CycloneDX format."""
    command = ["cyclonedx_py", "environment", sys.executable, "--pyproject", str(ROOT / "pyproject.toml"),
               "--mc-type", "library", "--short-PURLs", "--output-reproducible"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.PIPE)
    bill = clean_bill(json.loads(done.stdout), closure(), closure(EXTRAS))
    version = re.search(r'__version__ = "(.+)"', (ROOT / "hf_medtl" / "version.py").read_text(encoding="utf-8"))
    bill["metadata"]["component"]["version"] = version[1] if version else ""
    return bill


def clean_bill(bill: dict[str, Any], base: set[str], complete: set[str]) -> dict[str, Any]:
    """Return a bill of materials without tools of development and without where packages were installed from.

    Args:
        bill: of an environment.
        base: packages that this one always needs; their scope is "required".
        complete: packages that it needs with all extras; the scope of those not in `base` is "optional".
    """
    kept = []
    for component in bill["components"]:
        name = canonicalize_name(component["name"])
        if name in complete:
            # A mirror or a folder of this computer is nobody's business; what remains is from the packages' metadata.
            public = [
                link
                for link in component.get("externalReferences", [])
                if link.get("comment", "").startswith("from packaging metadata")
            ]
            kept.append(component | {"scope": "required" if name in base else "optional", "externalReferences": public})
            kept[-1].pop("properties", None)
    references = {component["bom-ref"] for component in kept} | {bill["metadata"]["component"]["bom-ref"]}
    edges = [
        edge | {"dependsOn": [name for name in edge.get("dependsOn", []) if name in references]}
        for edge in bill["dependencies"]
        if edge["ref"] in references
    ]
    return bill | {"components": kept, "dependencies": edges}


def main(task: str) -> None:
    """Write one of the files; see the top of this module."""
    if task == "licences":
        path, text = ROOT / "docs" / "dependencies.md", licences_page()
    elif task == "minimum":
        path, text = ROOT / "constraints-minimum.txt", minimum_versions()
    elif task == "sbom":
        path, text = ROOT / "build" / "sbom.cdx.json", json.dumps(bill_of_materials(), indent=1) + "\n"
    else:
        sys.exit(f"expected licences, minimum or sbom, found {task}")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
