"""Our metrics as Spaces, from which `evaluate.load(OWNER/NAME)` takes them."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import modules
from hf_medtl.publish.hub import commit_files, hub_errors, with_retries


def plan_module(name: str, repo_id: str) -> dict[str, Path]:
    """What would be uploaded: name in the Space -> file.

    Args:
        name: of a module, see `hf_medtl.evaluation.modules`.
        repo_id: owner/NAME, or NAME.

    Raises:
        MedtlError: there is no such module, or the repository has another name, by which `evaluate` would not find it.
    """
    folder = Path(modules.path(name))
    if repo_id.rpartition("/")[2] != name:
        raise MedtlError(f"evaluate.load looks for NAME.py in OWNER/NAME: give OWNER/{name}, found {repo_id}.")
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def push_module(name: str, repo_id: str, *, private: bool = False) -> str:
    """Upload a module as one commit to a Space, and return its address.

    Args:
        name: of a module.
        repo_id: owner/NAME, or NAME.
        private: of a new Space.

    Raises:
        MedtlError: as `plan_module`, or the Hub refuses.
    """
    files, api = plan_module(name, repo_id), HfApi()
    kind: Any = {"repo_type": "space", "space_sdk": "gradio"}
    with hub_errors(f"{repo_id} could not be uploaded", "Then give the same command."):
        repo = with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True, **kind))
        commit_files(api, repo.repo_id, files, "Upload metric", repo_type="space", stale=("*.py",))
    return str(repo)
