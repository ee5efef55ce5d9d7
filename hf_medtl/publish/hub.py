"""To the Hub: what is in a run folder, without its checkpoints."""

import hashlib
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import filter_repo_objects

from hf_medtl.common.files import list_files
from hf_medtl.errors import MedtlError
from hf_medtl.publish.check import FIELDS, check_card, check_files, check_secrets, check_whole, holds_token, missing
from hf_medtl.publish.templates import replace_section

logger = logging.getLogger("hf_medtl")
T = TypeVar("T")
UPLOAD_PATTERNS = ("README.md", "config.json", "model.safetensors",
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
PASSING = (408, 409, 412, 429, 500, 502, 503, 504)  # a conflict, too: nothing of ours rests on what was there before
LONGEST = 60.0  # seconds between two attempts


def plan_upload(folder: Path, waive: Mapping[str, str] | None = None) -> dict[str, Path]:
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
        if holds_token(reason.encode()):
            raise MedtlError(f"--waive {name} holds an access token. Nothing was uploaded: revoke the token.")
    text = (folder / "README.md").read_text(encoding="utf-8")
    lacking = {name: its for name, its in missing(text, results).items() if its.required and name not in (waive or {})}
    if lacking:
        words = ", ".join(its.words for its in lacking.values())
        raise MedtlError(
            f"The card of {folder} does not give {words}. Write it, or say why not: "
            f"--waive {next(iter(lacking))}='...' (hf-medtl card check {folder} lists all). Nothing was uploaded."
        )
    write_handler(folder)
    files = select_files(folder)
    check_files(files)
    check_secrets(files)
    return files


def select_files(folder: Path) -> dict[str, Path]:
    """Name in the repository -> file, of what others get of a folder."""
    every = list_files(folder)
    return {name: every[name] for name in filter_repo_objects(every, allow_patterns=list(UPLOAD_PATTERNS))}


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    message: str = "Upload run",
    waive: Mapping[str, str] | None = None,
) -> str:
    """Upload a finished run as one commit, tag it v1, v2, ..., and return the repository's address.

    Only what a model page needs goes: weights, processor, configuration, card, results, split and figures; such files
    of an earlier run that this one has not are deleted. Unchanged files make no commit and no tag. The token is the one
    of `hf auth login` or $HF_TOKEN. What may pass, such as an overloaded server or a broken connection, is tried again.

    Args:
        folder: of a finished run.
        repo_id: owner/name, or name.
        private: of a new repository.
        message: of the commit.
        waive: as for `plan`.

    Raises:
        MedtlError: as `plan`, or the Hub refuses; then the repository has the files of before, or none. An upload that
            is whole and could not be tagged is tagged by the next one.
    """
    plan_upload(folder, waive)
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
    write_waivers(folder / "README.md", waive or {})
    api, again = HfApi(), f"The run is whole in {folder}; then: hf-medtl push {folder} {repo_id}"
    validate_card(folder / "README.md")
    with hub_errors(f"{repo_id} could not be uploaded", again):
        repo = with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        tags = {tag.name for tag in with_retries(lambda: api.list_repo_refs(repo.repo_id)).tags}
        number = max((int(name[1:]) for name in tags if name[0] == "v" and name[1:].isdigit()), default=0)
        # The card names the tag that the push will get, so a push of what is there already must not get another.
        set_card_repository(folder / "README.md", repo.repo_id, f"v{number}")
        if number and with_retries(lambda: is_up_to_date(api, repo.repo_id, select_files(folder))):
            return str(repo)
        set_card_repository(folder / "README.md", repo.repo_id, f"v{number + 1}")
        oid = commit_files(api, repo.repo_id, select_files(folder), message)  # the last one's if only the tag was lost
    with hub_errors(f"{repo_id} is uploaded, but could not be tagged", again):
        with_retries(lambda: api.create_tag(repo.repo_id, tag=f"v{number + 1}", revision=oid, exist_ok=True))
    return str(repo)


def is_up_to_date(api: HfApi, repo_id: str, files: Mapping[str, Path]) -> bool:
    """Whether a repository has these very files, and no other of FILES, so that uploading them would make no commit."""
    found = {its.path: its for its in api.list_repo_tree(repo_id, recursive=True) if isinstance(its, RepoFile)}
    if set(filter_repo_objects(found, allow_patterns=list(UPLOAD_PATTERNS))) - files.keys():
        return False
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


def write_waivers(card: Path, waive: Mapping[str, str]) -> None:
    """Say on a card what it does not give, and why."""
    if waive:
        said = "\n".join(f"- {name} is not given: {' '.join(reason.split())}" for name, reason in waive.items())
        replace_section(card, "waived", said)


def create_repository(name: str, private: bool | None) -> str:
    """Make a repository, if there is none, and return its full name.

    Raises:
        MedtlError: the Hub refuses or can't be reached.
    """
    with hub_errors(f"{name} could not be made", "Nothing was trained."):
        return with_retries(lambda: HfApi().create_repo(name, private=private, exist_ok=True)).repo_id


def commit_files(
    api: HfApi,
    repo_id: str,
    files: Mapping[str, Path],
    message: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    stale: Sequence[str] = UPLOAD_PATTERNS,
) -> str:
    """Put files into a repository as one commit, with the bytes before it; return its id, or the last one's if nothing
    has changed.

    Not `upload_folder`: with hf-xet that makes several commits if it takes long or if one fails, and between them
    others would get a card without its weights.

    Args:
        api: to ask.
        repo_id: owner/name.
        files: name in the repository -> file.
        message: of the commit.
        repo_type: model or space.
        revision: branch, main by default.
        stale: patterns of what is deleted there, if it is not among `files`.

    Raises:
        MedtlError: a file holds a token.
        OSError, HTTPError, RuntimeError, ValueError: as the client, after some attempts if it may pass.
    """
    check_secrets(files)
    where: Any = {"repo_type": repo_type, "revision": revision}

    def attempt() -> str:
        there = filter_repo_objects(api.list_repo_files(repo_id, **where), allow_patterns=list(stale))
        gone = [name for name in there if name not in files and name != ".gitattributes"]
        operations: list[Any] = [
            *(CommitOperationDelete(path_in_repo=name) for name in gone),
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
        ]
        return api.create_commit(repo_id, operations, commit_message=message, **where).oid

    return with_retries(attempt)


def validate_card(card: Path, repo_type: str = "model") -> None:
    """Ask the Hub whether it takes a card of such a repository.

    Raises:
        MedtlError: it does not, or can't be reached.
    """
    with hub_errors("The Hub could not be asked about the card", "Nothing was uploaded."):
        try:
            with_retries(lambda: ModelCard.load(card).validate(repo_type))
        except ValueError as error:
            raise MedtlError(f"The Hub refuses the metadata of {card} ({error}). Nothing was uploaded.") from error


@contextmanager
def hub_errors(what: str, then: str) -> Iterator[None]:
    """Make one MedtlError of whatever the client raises: `what` went wrong, why, what to do about it, `then`."""
    try:
        yield
    except (OSError, HTTPError, RuntimeError, ValueError) as error:  # RuntimeError: of a file that is uploaded
        behind = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        lines = dict.fromkeys(str(its).strip().partition("\n")[0] for its in (error, behind))
        why = re.sub(r"\?[^\s']+", "", " ".join(lines))  # addresses may carry a signature after the question mark
        advice = ADVICE.get(http_status(behind), "Check the network, the name and `hf auth login`, then try again.")
        raise MedtlError(f"{what} ({type(behind).__name__}: {why}). {advice} {then}") from error


def http_status(error: BaseException) -> int:
    """HTTP status that an error is about; 0 if none."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code
    said = re.search(r"HTTP status \w+ error \((\d{3}) ", str(error))  # as hf-xet puts it
    return int(said[1]) if said else 0


def set_card_repository(path: Path, repo_id: str, revision: str) -> None:
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


def with_retries(ask: Callable[[], T], attempts: int = 5, sleep: Callable[[float], Any] = time.sleep) -> T:
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


HANDLER = Path(__file__).with_name("handler.py")


def write_handler(folder: Path) -> None:
    """Copy `handler.py` into a run's folder and write its `requirements.txt`, besides torch."""
    shutil.copyfile(HANDLER, folder / HANDLER.name)
    config = (folder / "config.json").read_text(encoding="utf-8")
    needed = {
        "transformers>=5.17,<6": True,
        "torchvision": True,
        "timm>=1.0.20": '"timm_wrapper"' in config,
        "segmentation-models-pytorch>=0.5": any(folder.rglob("smp.py")),
        "opencv-python-headless>=4.9": any(folder.rglob("processor.py")),
    }
    lines = [line for line, is_needed in needed.items() if is_needed]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
