"""Small models for a Space that is given none: trained on drawn pictures when they are first needed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import constants
from tqdm import tqdm

from hf_medtl import __version__
from hf_medtl.errors import MedtlError

RECIPES = {
    "drawn-brains": ["--dataset", "brain-phantoms", "--model_name_or_path", "cnn", "--image_size", "64",
                     "--num_train_epochs", "12", "--learning_rate", "2e-3", "--head_learning_rate", "2e-3"],
    "drawn-brains-baseline": ["--dataset", "brain-phantoms", "--model_name_or_path", "cnn_baseline", "--image_size", "64",
                              "--num_train_epochs", "6", "--learning_rate", "2e-3", "--head_learning_rate", "2e-3"],
    "drawn-lungs": ["--dataset", "chest-phantoms", "--task", "image-segmentation", "--model_name_or_path", "unet",
                    "--encoder", "mobilenet_v2", "--encoder_weights", "none", "--image_size", "64", "--num_train_epochs", "6",
                    "--learning_rate", "2e-3", "--head_learning_rate", "2e-3", "--loss", "bce_dice",
                    "--largest_components", "2"],
}  # fmt: skip


def demo_models() -> list[str]:
    """Folders of the models; those that are not there yet are trained, with a bar.

    Raises:
        MedtlError: training failed, with the end of what it said.
    """
    place = Path(constants.HF_HOME) / "hf_medtl" / "space" / __version__
    missing = [name for name in RECIPES if not (place / name / "results.json").is_file()]
    for name in tqdm(missing, desc="Small models on drawn pictures", unit="model", disable=not missing):
        train(name, place)
    return [str(place / name) for name in RECIPES]


def train(name: str, place: Path) -> None:
    """One of RECIPES into `place`, whole or not at all, in a process of its own: a run seeds and configures its process."""
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        folder = Path(temporary) / name
        command = [sys.executable, "-c", "from hf_medtl import main; main({})", *RECIPES[name]]
        flags = ["--output_dir", str(folder), "--seed", "0", "--report_to", "none", "--disable_tqdm", "true"]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "1"})
        if done.returncode:
            raise MedtlError(f"No model could be trained for the demonstration: {done.stderr.strip()[-500:]}")
        if not (place / name).exists():  # else another process was quicker
            folder.rename(place / name)
