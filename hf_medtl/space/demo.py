"""Small models for a Space that is given none: trained on drawn pictures when they are first needed."""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from tqdm import tqdm
from transformers import ViTConfig, ViTImageProcessor

from hf_medtl import __version__
from hf_medtl.errors import MedtlError

VIT: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
RATES = ["--learning_rate", "1e-3", "--head_learning_rate", "1e-3"]
RECIPES = {
    "drawn-brains-vit": [*RATES, "--dataset", "brain-phantoms", "--from_scratch", "--num_train_epochs", "25"],
    "drawn-brains-cnn": [*RATES, "--dataset", "brain-phantoms", "--model_name_or_path", "cnn_baseline",
                         "--num_train_epochs", "6"],
    "drawn-lungs": [*RATES, "--dataset", "chest-phantoms", "--task", "image-segmentation",
                    "--model_name_or_path", "unet", "--encoder", "tu-test_resnet", "--encoder_weights", "none",
                    "--image_size", "64", "--num_train_epochs", "4", "--loss", "bce_dice", "--largest_components", "2"],
}  # fmt: skip


def demo_models() -> list[str]:
    """Folders of the models; those that are not there yet are trained, two at a time, with a bar.

    Raises:
        MedtlError: training failed, with the end of what it said.
    """
    place = Path(constants.HF_HOME) / "hf_medtl" / "space" / __version__
    missing = [name for name in RECIPES if not (place / name / "results.json").is_file()]
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda name: train(name, place), missing)
        for _ in tqdm(done, "Training small models on drawn pictures", len(missing), unit="model", disable=not missing):
            pass
    return [str(place / name) for name in RECIPES]


def train(name: str, place: Path) -> None:
    """One of RECIPES into `place`, whole or not at all; in a process of its own, since a run configures its process."""
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        folder, start = Path(temporary) / name, Path(temporary) / "vit"
        flags = [*RECIPES[name], "--output_dir", str(folder), "--seed", "0", "--report_to", "none"]
        if "--from_scratch" in flags:
            ViTConfig(**VIT).save_pretrained(start)
            ViTImageProcessor(size={"height": VIT["image_size"], "width": VIT["image_size"]}).save_pretrained(start)
            flags += ["--model_name_or_path", str(start)]
        done = subprocess.run(
            [sys.executable, "-c", "from hf_medtl import main; main({})", *flags, "--disable_tqdm", "true"],
            capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            raise MedtlError(f"No model could be trained for the demonstration: {done.stderr.strip()[-500:]}")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if not (place / name).exists():  # else another process was quicker
            folder.rename(place / name)
