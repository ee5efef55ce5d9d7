"""Demonstration models for a Space without models: small, trained on synthetic images at first use."""

import logging
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

from hf_medtl.common.progress import shows_bars
from hf_medtl.errors import MedtlError
from hf_medtl.version import __version__

logger = logging.getLogger("hf_medtl")

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
    """Return the folders of the demonstration models, training missing ones, two at a time, with a progress bar.

    Models finished before an interruption are kept, partial ones never; a second process waits for the first.

    Raises:
        MedtlError: training failed (with the end of its output), or the folder is not writable.
    """
    folder = Path(constants.HF_HOME) / "hf_medtl" / "space" / __version__
    if _missing(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                _train_all(_missing(folder), folder)
        except OSError as error:
            raise MedtlError(
                f"Cannot write to {folder} ({error.strerror or error}). Free some disk space, set HF_HOME to another "
                "folder, or give --models."
            ) from error
    return [str(folder / name) for name in RECIPES]


def _missing(folder: Path) -> list[str]:
    """Return the names of the models without results."""
    return [name for name in RECIPES if not (folder / name / "results.json").is_file()]


def _train_all(names: Sequence[str], folder: Path) -> None:
    """Train some of RECIPES, two at a time. If one fails or the user interrupts, stop the others, too."""
    epochs = sum(int(RECIPES[name][RECIPES[name].index("--num_train_epochs") + 1]) for name in names)
    processes: list[subprocess.Popen[str]] = []
    what, bars = "Training small models on synthetic images", shows_bars()
    if names and not bars:
        logger.info("%s: %d epochs", what, epochs)
    with (
        tqdm(total=epochs, desc=what, unit="epoch", disable=not (names and bars)) as bar,
        ThreadPoolExecutor(2) as pool,
    ):
        try:
            for future in as_completed([pool.submit(_train, name, folder, processes, bar) for name in names]):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise


def _train(name: str, folder: Path, processes: list[subprocess.Popen[str]], bar: tqdm) -> None:
    """Train one of RECIPES into `folder`, atomically, in its own process, since a run configures its process."""
    partial = folder / f".{name}.half"
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    run, start = partial / name, partial / "vit"
    try:
        flags = [*RECIPES[name], "--output_dir", str(run), "--seed", "0", "--report_to", "none"]
        if "--from_scratch" in flags:
            ViTConfig(**VIT).save_pretrained(start)
            ViTImageProcessor(size={"height": VIT["image_size"], "width": VIT["image_size"]}).save_pretrained(start)
            flags += ["--model_name_or_path", str(start)]
        with subprocess.Popen(
            [sys.executable, "-c", "from hf_medtl import main; main({})", *flags, "--disable_tqdm", "true"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        ) as process:  # fmt: skip
            processes.append(process)
            output = deque[str](maxlen=20)
            assert process.stdout is not None
            for line in process.stdout:
                output.append(line)
                bar.update("validation loss" in line)
        if process.returncode:
            raise MedtlError(f"Training the demonstration model {name} failed: {''.join(output).strip()[-500:]}")
        for checkpoint in run.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        shutil.rmtree(folder / name, ignore_errors=True)  # one without results.json
        run.rename(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
