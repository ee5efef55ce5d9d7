"""The files of a Space on the Hub, and their upload."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError

from hf_medtl.common.files import files_of
from hf_medtl.errors import MedtlError
from hf_medtl.publish.check import check_secrets
from hf_medtl.publish.hub import commit, explained, patiently, plan, validate, write_waived
from hf_medtl.publish.templates import templates
from hf_medtl.space.examples import drawn
from hf_medtl.space.registry import names_of
from hf_medtl.version import __version__

SDK = "6.31.0"  # of Gradio, that this was tried with
PACKAGE = "hf_medtl[dicom-out,explain,nifti]"
FILES = ("README.md", "app.py", "requirements.txt", "*.whl", "examples/*", "models/*")
NOT_SERVED = ("splits.csv", "predictions.csv", "figures/", "export/")  # of a run: some show or name its pictures


def write_space(
    folder: Path,
    models: Sequence[str] = (),
    *,
    title: str = "Look at what a model sees",
    repo: str = "",
    requirement: str | None = None,
    waive: Mapping[str, str] | None = None,
    mcp_server: bool = False,
) -> dict[str, Path]:
    """Write README.md, app.py, requirements.txt, examples and the files of local runs.

    Args:
        folder: new or empty.
        models: run folders, or ids on the Hub.
        title: of the Space.
        repo: owner/name of the Space, where pip finds a wheel that goes along.
        requirement: how pip gets hf_medtl: a wheel, or a line of requirements.txt; name and version if not given.
        waive: as for `hf_medtl.publish.hub.plan`.
        mcp_server: whether the Space offers tools to language models.

    Returns:
        Name in the Space -> file.

    Raises:
        MedtlError: the folder is not empty, a run can't be published, a model is nowhere, or a file holds a token.
    """
    if folder.exists() and any(folder.iterdir()):
        raise MedtlError(f"{folder} is not empty. Give a new folder.")
    names = names_of(models)
    runs = {source: plan(Path(source), waive) for source in models if Path(source).is_dir()}
    for source in models:
        if source not in runs:
            check_published(source)
    (folder / "examples").mkdir(parents=True)
    sources = []
    for name, source in zip(names, models, strict=True):
        place = f"models/{name.replace('/', '-')}"
        sources.append((place, True) if source in runs else (source, False))
        for path, file in runs.get(source, {}).items():
            if not path.startswith(NOT_SERVED):
                (folder / place / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / place / path)
        if source in runs:
            write_waived(folder / place / "README.md", waive or {})
    package = PACKAGE.replace("]", ",mcp]") if mcp_server else PACKAGE
    line = requirement or f"{package}=={__version__}"
    if line.endswith(".whl") and Path(line).is_file():
        line = f"{package} @ {carry(Path(line), folder, repo)}"
    facts = {"title": title, "sdk_version": SDK, "sources": sources, "requirement": line, "mcp_server": mcp_server}
    for name in ("README.md", "app.py", "requirements.txt"):
        text = templates("hf_medtl.space").get_template(f"{name}.jinja").render(facts)
        (folder / name).write_text(f"{text.rstrip()}\n", "utf-8")
    for example in drawn():
        (folder / "examples" / example.name).write_bytes(example.content)
    files = files_of(folder)
    check_secrets(files)
    return files


def check_published(name: str) -> None:
    """Raise a MedtlError unless there is a model of that name on the Hub."""
    advice = "Give a run folder or the id of a model on the Hub. Nothing was uploaded."
    with explained(f"The Hub could not be asked for {name}", advice), suppress(HFValidationError):
        if patiently(lambda: HfApi().file_exists(name, "config.json")):
            return
    raise MedtlError(f"{name} is neither a folder nor a model on the Hub. {advice}")


def carry(wheel: Path, folder: Path, repo: str) -> str:
    """Let a wheel of hf_medtl go along; the address from which pip gets it.

    The Hub installs before it copies a Space's files, so that it needs an address. By the hash it installs again when
    the wheel is another.
    """
    shutil.copyfile(wheel, folder / wheel.name)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{constants.ENDPOINT}/spaces/{repo}/resolve/main/{wheel.name}#sha256={digest}"


def push_space(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload what `write_space` wrote as one commit; nothing if nothing changed. The Space's address.

    What an earlier push put there and this one has not is deleted; other files stay.

    Raises:
        MedtlError: the Hub refuses.
    """
    api, files = HfApi(), files_of(folder)
    if private and any(name.endswith(".whl") for name in files):
        raise MedtlError("The Hub can't install a wheel out of a private Space. Give another --requirement.")
    validate(folder / "README.md", "space")
    with explained(f"The Space {repo} could not be uploaded", "Push it again."):
        url = patiently(
            lambda: api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        )
        commit(api, url.repo_id, files, "Upload Space", repo_type="space", stale=FILES)
    return str(url)
