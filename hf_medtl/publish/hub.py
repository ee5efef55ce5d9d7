"""Hub uploads of run folders: one commit a push, tagged v1, v2, ..."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from hf_medtl.common.checksums import check_unchanged
from hf_medtl.common.files import list_files, write_atomic
from hf_medtl.common.hub_errors import hub_errors, with_retries
from hf_medtl.common.links import check_link
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.data.name_scan import check_names
from hf_medtl.errors import MedtlError
from hf_medtl.publish.card_fields import CARD_FIELDS, missing_fields
from hf_medtl.publish.check import check_card, check_files, check_run_files, check_secrets, contains_token
from hf_medtl.publish.licences import check_chain
from hf_medtl.publish.neutral_files import are_names_public, neutral_files
from hf_medtl.publish.private_names import private_names
from hf_medtl.publish.templates import replace_section

logger = logging.getLogger("hf_medtl")
UPLOAD_PATTERNS = ("README.md", "config.json", "model.safetensors",
         "model-*-of-*.safetensors", "model.safetensors.index.json", "preprocessor_config.json", "processor.py",
         "cnn.py", "encoder_classifier.py", "smp.py", "ensemble.py", "recipe.yaml", "results.json", "splits.csv",
         "predictions.csv", "explanations.json", "evaluations.json", "figures/*.png", "lung_model/*",
         "outliers.safetensors", "export/*/model.*", "export/*/*.json", "handler.py", "requirements.txt")  # fmt: skip


class UploadPlan(dict[str, Path]):
    """Checked files to upload, by their names in the repository; knows which have changed since it was made."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        super().__init__(files)
        self._stamps = {name: self._stamp(path) for name, path in files.items()}

    def changed(self) -> dict[str, Path]:
        """Return the files that were written since."""
        return {name: path for name, path in self.items() if self._stamp(path) != self._stamps[name]}

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int, int]:
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns


def plan_upload(
    folder: Path,
    waive: Mapping[str, str] | None = None,
    publish_names: bool = False,
    allowed: frozenset[str] = frozenset(),
) -> UploadPlan:
    """Check a run, refuse an incomplete one, and return the files to upload by their names in the repository.

    `handler.py` and `requirements.txt` are written to the folder.

    Args:
        folder: Folder of a finished run.
        waive: Field that the card lacks -> reason, which is written on the card.
        publish_names: Keep the file names of images, which otherwise become neutral identifiers.
        allowed: Words that are no names of patients, though files of the data are called so; see `allowed_words`.

    Raises:
        MedtlError: The run is incomplete, its card lacks a required field that is not waived, its licence allows more
            than those of data and base model, or a file holds a token or what may be the name of a patient.
    """
    waive = waive or {}
    results = check_run_files(folder)
    check_chain(folder, check_card(folder))
    for name, reason in waive.items():
        if name not in CARD_FIELDS or not reason.strip():
            raise MedtlError(
                f"--waive is FIELD=REASON, with a field of {', '.join(CARD_FIELDS)}; found {name}={reason}."
            )
        if contains_token(reason.encode()):
            raise MedtlError(f"--waive {name} holds an access token. Nothing was uploaded: revoke the token.")
    text = (folder / "README.md").read_text(encoding="utf-8")
    missing = {
        name: field.description
        for name, field in missing_fields(text, results).items()
        if field.required and name not in waive
    }
    if missing:
        raise MedtlError(
            f"The card of {folder} does not give {', '.join(missing.values())}. Write it, or say why not: "
            f"--waive {next(iter(missing))}='...' (hf-medtl card check {folder} lists all). Nothing was uploaded."
        )
    _write_handler(folder)
    plan = UploadPlan(published_files(folder, publish_names))
    check_files(plan)
    check_secrets(plan)
    check_names(plan, private_names(folder, publish_names), allowed)
    check_unchanged(folder, "Nothing was uploaded.")
    return plan


def select_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that are uploaded, by their names in the repository.

    Raises:
        MedtlError: A file is a link to outside the folder, such as to a private one.
    """
    files = list_files(folder)
    chosen = [*filter_repo_objects(files, allow_patterns=list(UPLOAD_PATTERNS))]
    for name in chosen:
        check_link(files[name], folder)
    return {name: files[name] for name in chosen}


def published_files(folder: Path, publish_names: bool = False) -> dict[str, Path]:
    """Return the files of a run to upload; images have neutral identifiers in them, unless their names are public."""
    files = select_files(folder)
    return files if are_names_public(RunFolder(folder), publish_names) else neutral_files(folder, files)


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Upload run",
    waive: Mapping[str, str] | None = None,
    plan: UploadPlan | None = None,
    publish_names: bool = False,
    allowed: frozenset[str] = frozenset(),
) -> str:
    """Upload a finished run as one commit, tag it v1, v2, ..., and return the repository's URL.

    Only the files of a model page are uploaded: weights, processor, configuration, card, results, split and figures;
    such files of an earlier run that this one lacks are deleted. Unchanged files make no commit and no tag. The token
    is the one of `hf auth login` or $HF_TOKEN. Temporary failures, such as an overloaded server or a broken
    connection, are retried.

    Args:
        folder: Folder of a finished run.
        repo_id: owner/name, or name.
        private: Make a new repository private.
        message: Commit message.
        waive: As for `plan_upload`.
        plan: What `plan_upload` returned, if the caller has called it.
        publish_names: As for `plan_upload`.
        allowed: As for `plan_upload`.

    Raises:
        MedtlError: As `plan_upload`, or the Hub refuses; then the repository is unchanged, or empty. If only the tag
            failed, the next push makes it.
    """
    plan = plan_upload(folder, waive, publish_names, allowed) if plan is None else plan
    cards = {card := folder / "README.md", plan[card.name]}  # the published one may be a copy with identifiers
    for each in cards:
        write_waivers(each, waive or {})
    api, advice = HfApi(), f"The run is complete in {folder}; then: hf-medtl push {folder} {repo_id}"
    validate_card(card)
    with hub_errors(f"{repo_id} could not be uploaded", advice):
        repo = with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        tags = {tag.name for tag in with_retries(lambda: api.list_repo_refs(repo.repo_id)).tags}
        number = max((int(name[1:]) for name in tags if name[0] == "v" and name[1:].isdigit()), default=0)
        # The card names the tag of this push, so pushing the same files again must not change the tag.
        for each in cards:
            _set_card_repository(each, repo.repo_id, f"v{number}")
        if number and with_retries(lambda: _is_up_to_date(api, repo.repo_id, plan)):
            return str(repo)
        for each in cards:
            _set_card_repository(each, repo.repo_id, f"v{number + 1}")
        names, changed = private_names(folder, publish_names), plan.changed()
        # The last commit if only the tag failed.
        oid = commit_files(api, repo.repo_id, plan, message, names=names, allowed=allowed, unchecked=changed)
    with hub_errors(f"{repo_id} is uploaded, but could not be tagged", advice):
        with_retries(lambda: api.create_tag(repo.repo_id, tag=f"v{number + 1}", revision=oid, exist_ok=True))
    return str(repo)


def _is_up_to_date(api: HfApi, repo_id: str, files: Mapping[str, Path]) -> bool:
    """Return True if a repository has exactly these files (of UPLOAD_PATTERNS), so that a commit would be empty."""
    remote = {entry.path: entry for entry in api.list_repo_tree(repo_id, recursive=True) if isinstance(entry, RepoFile)}
    if set(filter_repo_objects(remote, allow_patterns=list(UPLOAD_PATTERNS))) - files.keys():
        return False
    for name, path in sorted(files.items(), key=lambda item: item[1].stat().st_size):  # weights are read last
        entry, size = remote.get(name), path.stat().st_size
        if entry is None or entry.size != size:
            return False
        with path.open("rb") as stream:
            if entry.lfs:
                same = hashlib.file_digest(stream, "sha256").hexdigest() == entry.lfs.sha256
            else:  # git's own hash
                same = hashlib.sha1(b"blob %d\0" % size + stream.read()).hexdigest() == entry.blob_id
        if not same:
            return False
    return True


def write_waivers(card: Path, waive: Mapping[str, str]) -> None:
    """Write on a card which fields it lacks, and why."""
    if waive:
        # `missing_fields` looks for "is not given".
        lines = [f"- {name} is not given: {' '.join(reason.split())}" for name, reason in waive.items()]
        replace_section(card, "waived", "\n".join(lines))


def create_repository(name: str, private: bool | None) -> str:
    """Create a model repository, if there is none, and return its full name.

    Raises:
        MedtlError: The Hub refuses or can't be reached, or the token may not write to an existing repository.
    """
    api = HfApi()
    with hub_errors(f"{name} could not be created or written to", "Nothing was trained."):
        repo_id = with_retries(lambda: api.create_repo(name, private=private, exist_ok=True)).repo_id
        try:  # `create_repo` accepts a repository that exists, whoever may write to it
            with_retries(lambda: api.auth_check(repo_id, write=True))
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):  # others: a Hub that does not know the question
                raise
        return repo_id


def check_hub_access(name: str) -> None:
    """Check without the network that there is a token, and that a repository may have this name.

    Raises:
        MedtlError: No token, or an invalid name.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise MedtlError(
            f"--hub_model_id {name!r} can't be the name of a repository ({error}). Give OWNER/NAME or NAME."
        ) from error
    if not get_token():
        raise MedtlError("--push_to_hub needs a token with write access. Log in with `hf auth login`, or set HF_TOKEN.")


def commit_files(
    api: HfApi,
    repo_id: str,
    files: Mapping[str, Path],
    message: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    stale: Sequence[str] = UPLOAD_PATTERNS,
    names: Mapping[str, str] | None = None,
    allowed: frozenset[str] = frozenset(),
    unchecked: Mapping[str, Path] | None = None,
) -> str:
    """Upload files to a repository as one commit; return its id, or that of the last commit if nothing changed.

    Not `upload_folder`: with hf-xet that makes several commits if it takes long or if one fails, and between them
    others would get a card without its weights.

    Args:
        api: Hub client.
        repo_id: owner/name.
        files: Name in the repository -> file.
        message: Commit message.
        repo_type: model or space.
        revision: Branch; main by default.
        stale: Patterns of files to delete there, unless they are among `files`.
        names: Names that may not be published; see `private_names`.
        allowed: Words that may, though they are among these.
        unchecked: The files that were not yet searched for tokens and names; all by default.

    Raises:
        MedtlError: A file holds a token or one of the names.
        OSError, HTTPError, RuntimeError, ValueError: Raised by the client, after retries of temporary failures.
    """
    unchecked = files if unchecked is None else unchecked
    check_secrets(unchecked)
    check_names(unchecked, names or {}, allowed)
    where: Any = {"repo_type": repo_type, "revision": revision}

    def attempt() -> str:
        remote = filter_repo_objects(api.list_repo_files(repo_id, **where), allow_patterns=list(stale))
        deleted = [name for name in remote if name not in files and name != ".gitattributes"]
        operations: list[Any] = [
            *(CommitOperationDelete(path_in_repo=name) for name in deleted),
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
        ]
        return api.create_commit(repo_id, operations, commit_message=message, **where).oid

    return with_retries(attempt)


def validate_card(card: Path | str, repo_type: str = "model", then: str = "Nothing was uploaded.") -> None:
    """Check with the Hub that it accepts the metadata of a card.

    Args:
        card: The file, or its text.
        repo_type: model or space.
        then: What did not happen because of an error.

    Raises:
        MedtlError: It does not, or can't be reached.
    """
    with hub_errors("The Hub could not check the card", then):
        try:
            loaded = ModelCard(card) if isinstance(card, str) else ModelCard.load(card)
            with_retries(lambda: loaded.validate(repo_type))
        except ValueError as error:
            name = "the model card" if isinstance(card, str) else card
            raise MedtlError(f"The Hub refuses the metadata of {name} ({error}). {then}") from error


def _set_card_repository(path: Path, repo_id: str, revision: str) -> None:
    """Rewrite the code examples of a card to load the model from a repository and revision on the Hub."""
    name = ModelCard.load(path).data.model_name
    if not name:
        return
    old, text = re.escape(name), path.read_text(encoding="utf-8")
    download = f"hf download {repo_id} --revision {revision}"
    for pattern, new in {
        rf"^# {old}$": f"# {repo_id}",
        rf"^- name: {old}$": f"- name: {repo_id}",
        rf'(model=|from_pretrained\()"{old}"(, revision="[^"]*")?': rf'\g<1>"{repo_id}", revision="{revision}"',
        rf'^name(, revision)? = "{old}".*$': f'name, revision = "{repo_id}", "{revision}"',
        rf'"(local-dir|hf-hub):{old}(@[^"]*)?"': f'"hf-hub:{repo_id}@{revision}"',
        rf"^pip install -r {old}/": f"{download} --local-dir model\npip install -r model/",  # of a folder
        rf"^python {old}/handler": "python model/handler",
        rf"^hf download {old}( --revision \S+)?": download,
    }.items():
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    RunFolder(path.parent).write(path.name, text)


HANDLER = Path(__file__).with_name("handler.py")


def _write_handler(folder: Path) -> None:
    """Copy `handler.py` into a run folder and write its `requirements.txt` (without torch)."""
    write_atomic(folder / HANDLER.name, HANDLER.read_bytes())
    config = (folder / "config.json").read_text(encoding="utf-8")
    requirements = {
        "transformers>=5.17,<6": True,
        "torchvision": True,
        "timm>=1.0.26": '"timm_wrapper"' in config,
        "segmentation-models-pytorch>=0.5": any(folder.rglob("smp.py")),
        "opencv-python-headless>=4.13.0.90": any(folder.rglob("processor.py")),
    }
    lines = [line for line, needed in requirements.items() if needed]
    write_atomic(folder / "requirements.txt", "\n".join(lines) + "\n")
