"""The files of a Space on the Hub, and their upload."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi

from hf_medtl import __version__
from hf_medtl.errors import MedtlError
from hf_medtl.publish.card import templates
from hf_medtl.publish.check import check_secrets
from hf_medtl.publish.hub import commit, explained, patiently, plan
from hf_medtl.space.examples import drawn
from hf_medtl.space.shelf import names_of

SDK = "6.31.0"  # of Gradio, that this was tried with


def write_space(folder: Path, models: Sequence[str], title: str, requirement: str | None = None) -> list[str]:
    """Write README.md, app.py, requirements.txt, examples and the files of local runs; their names.

    Args:
        folder: new or empty.
        models: run folders or ids on the Hub.
        title: of the Space.
        requirement: how pip gets hf_medtl; its version by name if not given.

    Raises:
        MedtlError: the folder is not empty, a run can't be published, or a file holds a token.
    """
    if folder.exists() and any(folder.iterdir()):
        raise MedtlError(f"{folder} is not empty. Give a new folder.")
    (folder / "examples").mkdir(parents=True)
    sources = []
    for name, source in zip(names_of(models), models, strict=True):
        if not Path(source).is_dir():
            sources.append(source)
            continue
        sources.append(f"models/{name.replace('/', '-')}")
        for path, file in plan(Path(source)).items():
            (folder / sources[-1] / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / sources[-1] / path)
    facts = {
        "title": title,
        "sdk_version": SDK,
        "models": sources,
        "published": [source for source in sources if not source.startswith("models/")],
        "requirement": requirement or f"hf_medtl[dicom-out,explain]=={__version__}",
    }
    for name in ("README.md", "app.py", "requirements.txt"):
        (folder / name).write_text(
            templates("hf_medtl.space").get_template(f"{name}.jinja").render(facts) + "\n", "utf-8"
        )
    for example in drawn():
        (folder / "examples" / example.name).write_bytes(example.content)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    check_secrets({name: folder / name for name in files})
    return files


def push_space(folder: Path, repo: str, private: bool = False) -> str:
    """Upload what `write_space` wrote as one commit; nothing if nothing changed. The Space's address.

    Raises:
        MedtlError: the Hub refuses.
    """
    api = HfApi()
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    with explained(f"The Space {repo} could not be uploaded", "Push it again."):
        url = patiently(
            lambda: api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        )
        commit(api, url.repo_id, files, "Upload Space", repo_type="space", stale=("*",))
    return str(url)
