"""Metric Spaces: uploads from which `evaluate.load("OWNER/NAME")` loads our metrics."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from hf_medtl.common.hub_errors import hub_errors, with_retries
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation import modules
from hf_medtl.publish.hub import commit_files


def plan_metric(name: str, repo_id: str) -> dict[str, Path]:
    """Return the files that would be uploaded, by their names in the Space.

    Args:
        name: Name of a module of `hf_medtl.evaluation.modules`.
        repo_id: owner/NAME, or NAME.

    Raises:
        MedtlError: There is no such module, or the repository's name differs, so `evaluate` would not find it.
    """
    folder = Path(modules.path(name))
    if repo_id.rpartition("/")[2] != name:
        raise MedtlError(f"evaluate.load looks for NAME.py in OWNER/NAME: give OWNER/{name}, found {repo_id}.")
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def push_metric(name: str, repo_id: str, *, private: bool = False) -> str:
    """Upload a metric as one commit to a Space and return its URL.

    Args:
        name: Name of the module.
        repo_id: owner/NAME, or NAME.
        private: Make a new Space private.

    Raises:
        MedtlError: As `plan_metric`, or the Hub refuses.
    """
    files, api = plan_metric(name, repo_id), HfApi()
    options: Any = {"repo_type": "space", "space_sdk": "gradio"}
    with hub_errors(f"{repo_id} could not be uploaded", "Then repeat the command."):
        repo = with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True, **options))
        commit_files(api, repo.repo_id, files, "Upload metric", repo_type="space", stale=("*.py",))
    return str(repo)
