"""To the Hub: what is in a run folder, without its checkpoints."""

from pathlib import Path

from huggingface_hub import HfApi

from hf_medtl.errors import MedtlError

FILES = ("README.md", "config.json", "model.safetensors",
         "model-*-of-*.safetensors", "model.safetensors.index.json", "preprocessor_config.json", "processor.py",
         "cnn.py", "smp.py", "ensemble.py", "recipe.yaml", "results.json", "splits.csv", "predictions.csv",
         "explanations.json", "figures/*.png", "lung_model/*", "outliers.safetensors")  # fmt: skip


def push(folder: Path, repo_id: str, *, private: bool = False, message: str = "Upload run") -> str:
    """Upload a finished run as one commit and return the repo's address.

    Only what a model page needs goes: weights, processor, configuration, card, results, split and figures. The token is
    the one of `hf auth login` or $HF_TOKEN.

    Raises:
        MedtlError: the run is unfinished, or the Hub refuses.
    """
    if (folder / "UNFINISHED").exists() or not (folder / "model.safetensors").exists():
        raise MedtlError(f"{folder} is not a finished run, so nothing was uploaded.")
    try:
        api = HfApi()
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, allow_patterns=list(FILES), commit_message=message)
    except OSError as error:  # what huggingface_hub raises on HTTP errors is one, too
        raise MedtlError(
            f"{repo_id} could not be uploaded ({type(error).__name__}: {str(error).splitlines()[0]}). The run is whole "
            f"in {folder}; check the network, the name and `hf auth login`, then push again."
        ) from error
    return str(repo)
