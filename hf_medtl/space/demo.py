"""Small models for a Space that is given none: trained on drawn pictures when they are first needed."""

import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import constants
from tqdm import tqdm
from transformers import ViTConfig, ViTImageProcessor

from hf_medtl.errors import MedtlError
from hf_medtl.version import __version__

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

    What was finished before an end half-way is kept, and nothing half is; another process waits for this one.

    Raises:
        MedtlError: training failed, with the end of what it said, or there is no room.
    """
    place = Path(constants.HF_HOME) / "hf_medtl" / "space" / __version__
    if missing_in(place):
        try:
            place.mkdir(parents=True, exist_ok=True)
            with FileLock(place / ".lock"):
                train_all(missing_in(place), place)
        except OSError as error:
            raise MedtlError(
                f"{place} can't be written ({error.strerror or error}). Free some room, set HF_HOME to another folder, "
                "or give --models."
            ) from error
    return [str(place / name) for name in RECIPES]


def missing_in(place: Path) -> list[str]:
    """Names of the models that are not there yet."""
    return [name for name in RECIPES if not (place / name / "results.json").is_file()]


def train_all(names: Sequence[str], place: Path) -> None:
    """Some of RECIPES, two at a time; when one fails or somebody interrupts, the others end, too."""
    epochs = sum(int(RECIPES[name][RECIPES[name].index("--num_train_epochs") + 1]) for name in names)
    running: list[subprocess.Popen[str]] = []
    with (
        tqdm(total=epochs, desc="Training small models on drawn pictures", unit="epoch", disable=not names) as bar,
        ThreadPoolExecutor(2) as pool,
    ):
        try:
            for done in as_completed([pool.submit(train, name, place, running, bar) for name in names]):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise


def train(name: str, place: Path, running: list[subprocess.Popen[str]], bar: tqdm) -> None:
    """One of RECIPES into `place`, whole or not at all; in a process of its own, since a run configures its process."""
    half = place / f".{name}.half"
    shutil.rmtree(half, ignore_errors=True)  # of a process that was killed
    folder, start = half / name, half / "vit"
    try:
        flags = [*RECIPES[name], "--output_dir", str(folder), "--seed", "0", "--report_to", "none"]
        if "--from_scratch" in flags:
            ViTConfig(**VIT).save_pretrained(start)
            ViTImageProcessor(size={"height": VIT["image_size"], "width": VIT["image_size"]}).save_pretrained(start)
            flags += ["--model_name_or_path", str(start)]
        with subprocess.Popen(
            [sys.executable, "-c", "from hf_medtl import main; main({})", *flags, "--disable_tqdm", "true"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        ) as process:  # fmt: skip
            running.append(process)
            said = deque[str](maxlen=20)
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                bar.update("'eval_loss'" in line)
        if process.returncode:
            raise MedtlError(f"No model could be trained for the demonstration: {''.join(said).strip()[-500:]}")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        shutil.rmtree(place / name, ignore_errors=True)  # one without results.json
        folder.rename(place / name)
    finally:
        shutil.rmtree(half, ignore_errors=True)
