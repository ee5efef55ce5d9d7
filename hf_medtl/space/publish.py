"""Publishing a Space: writing its folder, and uploading it to the Hub."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError

from hf_medtl.common.files import adding_files, list_files, write_atomic
from hf_medtl.common.hub_errors import hub_errors, with_retries
from hf_medtl.common.licences import HUB_NAMES, UNKNOWN, Source, inherit, read_licence
from hf_medtl.data.name_scan import check_names
from hf_medtl.data.person_names import names_in_headers
from hf_medtl.errors import MedtlError
from hf_medtl.publish.check import check_secrets
from hf_medtl.publish.hub import commit_files, plan_upload, validate_card, write_waivers
from hf_medtl.publish.private_names import private_names
from hf_medtl.publish.templates import template_environment
from hf_medtl.runs.output_folder import check_new
from hf_medtl.space.examples import generate_examples
from hf_medtl.space.registry import unique_names
from hf_medtl.version import __version__

GRADIO_VERSION = "6.31.0"  # the version this was tested with
PACKAGE = "hf_medtl[dicom-out,explain,nifti,space]"
MANAGED_FILES = ("README.md", "app.py", "requirements.txt", "*.whl", "examples/*", "models/*")
EXCLUDED = ("splits.csv", "predictions.csv", "figures/", "export/")  # files of a run: some show or name its images


def write_space(
    folder: Path,
    models: Sequence[str] = (),
    *,
    title: str = "Look at what a model sees",
    repo: str = "",
    requirement: str | None = None,
    waive: Mapping[str, str] | None = None,
    mcp_server: bool = False,
    publish_names: bool = False,
    allowed: frozenset[str] = frozenset(),
) -> dict[str, Path]:
    """Write README.md, app.py, requirements.txt, example images and the files of local runs.

    Args:
        folder: new or empty folder.
        models: run folders or Hub ids.
        title: title of the Space.
        repo: owner/name of the Space, from where pip gets a bundled wheel.
        requirement: requirement line of hf_medtl, or a wheel to bundle. By default name and version.
        waive: missing fields of the model cards with reasons, as for `hf_medtl.publish.hub.plan_upload`.
        mcp_server: offer tools to language models.
        publish_names: as for `hf_medtl.publish.hub.plan_upload`.
        allowed: as for `hf_medtl.publish.hub.plan_upload`.

    Returns:
        Path in the Space -> file.

    Raises:
        MedtlError: the folder is not empty, a run cannot be published, a model does not exist, or a file holds a token.
    """
    check_new(folder)
    names = unique_names(models)
    runs = {
        source: plan_upload(Path(source), waive, publish_names, allowed) for source in models if Path(source).is_dir()
    }
    for source in models:
        if source not in runs:
            _check_on_hub(source)
    with adding_files(folder) as staging:
        sources = []
        for name, source in zip(names, models, strict=True):
            if source not in runs:
                sources.append((source, False))
                continue
            target = f"models/{name.replace('/', '-')}"
            sources.append((target, True))
            for path, file in runs[source].items():
                if not path.startswith(EXCLUDED):
                    (staging / target / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, staging / target / path)
            write_waivers(staging / target / "README.md", waive or {})
        package = PACKAGE.replace("]", ",mcp]") if mcp_server else PACKAGE
        line = requirement or f"{package}=={__version__}"
        if line.endswith(".whl") and Path(line).is_file():
            line = f"{package} @ {bundle_wheel(Path(line), staging, repo)}"
        values = {"title": title, "sdk_version": GRADIO_VERSION, "sources": sources, "requirement": line,
                  "licence": _licence(runs), "mcp_server": mcp_server}  # fmt: skip
        for name in ("README.md", "app.py", "requirements.txt"):
            text = template_environment("hf_medtl.space").get_template(f"{name}.jinja").render(values)
            write_atomic(staging / name, f"{text.rstrip()}\n")
        (staging / "examples").mkdir()
        for example in generate_examples():
            write_atomic(staging / "examples" / example.name, example.content)
        check_secrets(list_files(staging))
        for source in runs:
            check_names(list_files(staging), private_names(Path(source), publish_names), allowed)
    return list_files(folder)


def _licence(runs: Iterable[str]) -> str:
    """Return the licence of a Space with the files of runs: the strictest, or `other` if the Hub has no name for it."""
    sources = [Source(f"the model {run}", *read_licence(Path(run) / "README.md")) for run in runs]
    licence = inherit(sources)
    return licence if licence in HUB_NAMES and licence != UNKNOWN else "other"


def _check_on_hub(name: str) -> None:
    """Raise a MedtlError unless the Hub has a model of that name."""
    advice = "Give a run folder or the id of a model on the Hub. Nothing was uploaded."
    with hub_errors(f"The Hub could not be queried for {name}", advice), suppress(HFValidationError):
        if with_retries(lambda: HfApi().file_exists(name, "config.json")):
            return
    raise MedtlError(f"{name} is neither a folder nor a model on the Hub. {advice}")


def bundle_wheel(wheel: Path, folder: Path, repo: str) -> str:
    """Copy a wheel of hf_medtl into a Space's folder and return the URL from which pip gets it.

    A URL is needed since the Hub installs requirements before it copies the files of a Space. With the hash in it, the
    Hub installs again when the wheel changes.

    Args:
        wheel: wheel to copy.
        folder: folder of the Space.
        repo: owner/name of the Space.
    """
    content = wheel.read_bytes()
    write_atomic(folder / wheel.name, content)
    digest = hashlib.sha256(content).hexdigest()
    return f"{constants.ENDPOINT}/spaces/{repo}/resolve/main/{wheel.name}#sha256={digest}"


def push_space(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload a folder of `write_space` as one commit, or nothing if nothing changed, and return the Space's URL.

    Files of an earlier push that are not in this one are deleted; other files of the Space stay.

    Args:
        folder: folder of the Space.
        repo: owner/name of the Space.
        private: if the Space is new, make it private.

    Raises:
        MedtlError: the Hub refuses.
    """
    api, files = HfApi(), list_files(folder)
    if private and any(name.endswith(".whl") for name in files):
        raise MedtlError("The Hub cannot install a wheel from a private Space. Give another --requirement.")
    names = names_in_headers([path for name, path in files.items() if name.startswith("examples/")])
    check_names(files, names)  # the user may have put images of their own there
    validate_card(folder / "README.md", "space")
    with hub_errors(f"The Space {repo} could not be uploaded", "Push it again."):
        url = with_retries(
            lambda: api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        )
        commit_files(api, url.repo_id, files, "Upload Space", repo_type="space", stale=MANAGED_FILES, names=names)
    return str(url)
