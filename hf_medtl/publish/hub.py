"""To the Hub: what is in a run folder, without its checkpoints."""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import filter_repo_objects

from hf_medtl.errors import MedtlError
from hf_medtl.publish.card import put_section
from hf_medtl.publish.check import FIELDS, check_card, check_secrets, check_whole, missing
from hf_medtl.publish.serving import put_handler

logger = logging.getLogger("hf_medtl")
T = TypeVar("T")
FILES = ("README.md", "config.json", "model.safetensors",
         "model-*-of-*.safetensors", "model.safetensors.index.json", "preprocessor_config.json", "processor.py",
         "cnn.py", "smp.py", "ensemble.py", "recipe.yaml", "results.json", "splits.csv", "predictions.csv",
         "explanations.json", "evaluations.json", "figures/*.png", "lung_model/*", "outliers.safetensors",
         "export/*/model.*", "export/*/*.json", "handler.py", "requirements.txt")  # fmt: skip
ADVICE = {
    401: "The Hub does not know the token: log in with `hf auth login`, or set HF_TOKEN.",
    403: "The token may not write there: take one with write access, or another owner.",
    404: "There is no such owner or repository, or the token may not see it.",
    409: "Somebody else changed the repository at the same moment: push again.",
    412: "Somebody else changed the repository at the same moment: push again.",
}
PASSING = (408, 429, 500, 502, 503, 504)
LONGEST = 60.0  # seconds between two attempts


def plan(folder: Path, waive: Mapping[str, str] | None = None) -> dict[str, Path]:
    """What would be uploaded: name in the repository -> file; everything is checked, nothing is sent.

    `handler.py` and `requirements.txt` are put into the folder.

    Args:
        folder: of a finished run.
        waive: field that its card lacks -> why. It is written on the card.

    Raises:
        MedtlError: the run is not whole, its card lacks something that is not waived, or a file holds a token.
    """
    results = check_whole(folder)
    check_card(folder)
    for name, reason in (waive or {}).items():
        if name not in FIELDS or not reason.strip():
            raise MedtlError(f"--waive is FIELD=REASON, with a field of {', '.join(FIELDS)}; found {name}={reason}.")
    text = (folder / "README.md").read_text(encoding="utf-8")
    lacking = {name: its for name, its in missing(text, results).items() if its.required and name not in (waive or {})}
    if lacking:
        words = ", ".join(its.words for its in lacking.values())
        raise MedtlError(
            f"The card of {folder} does not give {words}. Write it, or say why not: "
            f"--waive {next(iter(lacking))}='...' (hf-medtl card check {folder} lists all). Nothing was uploaded."
        )
    put_handler(folder)
    files = files_of(folder)
    check_secrets(files)
    return files


def files_of(folder: Path) -> dict[str, Path]:
    """Name in the repository -> file of a run folder."""
    every = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: every[name] for name in filter_repo_objects(every, allow_patterns=list(FILES))}


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Upload run",
    waive: Mapping[str, str] | None = None,
) -> str:
    """Upload a finished run as one commit, tag it v1, v2, ..., and return the repository's address.

    Only what a model page needs goes: weights, processor, configuration, card, results, split and figures. Unchanged
    files make no commit and no tag. The token is the one of `hf auth login` or $HF_TOKEN. What may pass, such as an
    overloaded server or a broken connection, is tried again.

    Args:
        folder: of a finished run.
        repo_id: owner/name, or name.
        private: of a new repository.
        message: of the commit.
        waive: as for `plan`.

    Raises:
        MedtlError: as `plan`, or the Hub refuses; then the repository has the files of before, or none.
    """
    plan(folder, waive)
    return send(folder, repo_id, private=private, message=message, waive=waive)


def send(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Upload run",
    waive: Mapping[str, str] | None = None,
) -> str:
    """`push` of what `plan` has nothing to say against."""
    if waive:
        said = "\n".join(f"- {name} is not given: {' '.join(reason.split())}" for name, reason in waive.items())
        put_section(folder / "README.md", "waived", said)
    api = HfApi()
    try:
        repo = patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        tags = {tag.name for tag in patiently(lambda: api.list_repo_refs(repo.repo_id)).tags}
        number = max((int(tag[1:]) for tag in tags if tag[0] == "v" and tag[1:].isdigit()), default=0)
        # The card names the tag that the push will get, so a push of what is there already must not get another.
        name_card(folder / "README.md", repo.repo_id, f"v{number}")
        if number and patiently(lambda: is_there(api, repo.repo_id, files_of(folder))):
            return str(repo)
        name_card(folder / "README.md", repo.repo_id, f"v{number + 1}")
        commit = patiently(
            lambda: api.upload_folder(
                repo_id=repo.repo_id, folder_path=folder, allow_patterns=list(FILES), commit_message=message
            )
        )
        patiently(lambda: api.create_tag(repo.repo_id, tag=f"v{number + 1}", revision=commit.oid, exist_ok=True))
    except (OSError, HTTPError, ValueError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        advice = ADVICE.get(status, "Check the network, the name and `hf auth login`, then push again.")
        raise MedtlError(
            f"{repo_id} could not be uploaded ({type(error).__name__}: {str(error).strip().splitlines()[0]}). {advice} "
            f"The run is whole in {folder}."
        ) from error
    return str(repo)


def is_there(api: HfApi, repo_id: str, files: Mapping[str, Path]) -> bool:
    """Whether a repository has these very files, so that uploading them would make no commit."""
    found = {its.path: its for its in api.list_repo_tree(repo_id, recursive=True) if isinstance(its, RepoFile)}
    for name, path in sorted(files.items(), key=lambda item: item[1].stat().st_size):  # weights are read last
        its, size = found.get(name), path.stat().st_size
        if its is None or its.size != size:
            return False
        with path.open("rb") as stream:
            if its.lfs:
                same = hashlib.file_digest(stream, "sha256").hexdigest() == its.lfs.sha256
            else:
                same = hashlib.sha1(b"blob %d\0" % size + stream.read()).hexdigest() == its.blob_id  # as git has it
        if not same:
            return False
    return True


def name_card(path: Path, repo_id: str, revision: str) -> None:
    """Let a card load its model by the name and the revision that it gets on the Hub."""
    name = ModelCard.load(path).data.model_name
    if not name:
        return
    old, text = re.escape(name), path.read_text(encoding="utf-8")
    for form, new in {
        rf"^# {old}$": f"# {repo_id}",
        rf"^- name: {old}$": f"- name: {repo_id}",
        rf'(model=|from_pretrained\()"{old}"(, revision="[^"]*")?': rf'\g<1>"{repo_id}", revision="{revision}"',
        rf'^name(, revision)? = "{old}".*$': f'name, revision = "{repo_id}", "{revision}"',
        rf'"(local-dir|hf-hub):{old}(@[^"]*)?"': f'"hf-hub:{repo_id}@{revision}"',
        rf"^hf download {old}( --revision \S+)?": f"hf download {repo_id} --revision {revision}",
    }.items():
        text = re.sub(form, new, text, flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")


def patiently(ask: Callable[[], T], attempts: int = 5, sleep: Callable[[float], Any] = time.sleep) -> T:
    """What `ask` gives, after some attempts if it fails in a way that may pass.

    Waits as long as the server asks for (Retry-After), or 1, 2, 4, ... seconds.
    """
    for attempt in range(1, attempts + 1):
        try:
            return ask()
        except HTTPError as error:  # of HTTP and of the connection; an HfHubHTTPError is one, too
            response = error.response if isinstance(error, HfHubHTTPError) else None
            if attempt == attempts or (response is not None and response.status_code not in PASSING):
                raise
            asked = response.headers.get("Retry-After", "") if response is not None else ""
            seconds = min(LONGEST, float(asked) if asked.isdigit() else 2.0 ** (attempt - 1))
            logger.warning("The Hub did not answer (%s); trying again in %.0f s.", type(error).__name__, seconds)
            sleep(seconds)
    raise AssertionError("not reached")
