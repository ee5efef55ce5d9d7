"""Selection and integrity checks of checkpoints to resume from."""

import json
import logging
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import safe_globals

from hf_medtl.common.checksums import is_inside, sha256_of_file
from hf_medtl.common.files import list_files, write_atomic
from hf_medtl.errors import MedtlError
from hf_medtl.models.untrusted import load_config

logger = logging.getLogger("hf_medtl")

CHECKSUMS = "SHA256SUMS"  # as `sha256sum --check SHA256SUMS` reads it

# File names of Trainer, FSDP and DeepSpeed. Without these parts training would silently restart them.
PARTS = {
    "weights": ("*.safetensors", "pytorch_model*", "global_step*"),
    "an optimizer": ("optimizer*", "global_step*"),
    "a scheduler": ("scheduler.pt", "global_step*"),
    "a random state": ("rng_state*.pth",),
}


def find_checkpoint(checkpoint: str | None, output_dir: Path, labels: tuple[str, ...]) -> str | None:
    """Return the checkpoint folder to resume from, or None.

    Args:
        checkpoint: a folder; "auto" or "true" for the newest complete checkpoint in `output_dir`; None or "none".
        output_dir: run folder.
        labels: (K,) labels of the model's outputs.

    Raises:
        MedtlError: an incomplete checkpoint, or one with other labels.
    """
    if not checkpoint or str(checkpoint).lower() in ("none", "false", "no"):
        return None
    folder = Path(checkpoint)
    if str(checkpoint).lower() in ("auto", "true", "last"):
        newest = sorted(output_dir.glob("checkpoint-*"), key=lambda p: int(p.name.removeprefix("checkpoint-")))[::-1]
        complete = next((path for path in newest if _is_complete(path)), None)
        if complete is None:
            if newest:
                logger.warning("No complete checkpoint is left in %s: training starts from the beginning.", output_dir)
            return None
        folder = complete
    if damage := find_damage(folder):
        raise MedtlError(
            f"{folder} is not a complete checkpoint: {damage}. Pass a checkpoint-* folder of the run, "
            "or --resume_from_checkpoint auto."
        )
    checkpoint_labels = tuple((load_config(folder).id2label or {}).values())
    if not (folder / CHECKSUMS).is_file():
        logger.info("%s has no checksums (%s), so its files are only checked for being complete.", folder, CHECKSUMS)
    if checkpoint_labels != labels:
        raise MedtlError(
            f"{folder} is a checkpoint for the labels {', '.join(checkpoint_labels)}; this data set has "
            f"{', '.join(labels)}. Resume with the original data set, or pass the checkpoint as --model_name_or_path "
            "to start from its weights."
        )
    return str(folder)


def _is_complete(folder: Path) -> bool:
    damage = find_damage(folder)
    if damage:
        logger.warning("%s is skipped: %s.", folder, damage)
    return damage is None


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of each file of a checkpoint to SHA256SUMS."""
    lines = [f"{sha256_of_file(path)}  {name}\n" for name, path in list_files(folder).items() if name != CHECKSUMS]
    write_atomic(folder / CHECKSUMS, "".join(lines))


def find_changes(folder: Path) -> str | None:
    """Describe the first file of a folder that is missing or differs from SHA256SUMS; None if there is none."""
    sums = folder / CHECKSUMS
    if not sums.is_file():  # of an older version, or the process ended just before they were written
        return None
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if not name or len(digest) != 64 or not is_inside(path, folder):
            return f"{CHECKSUMS} is damaged"
        if not path.is_file():
            return f"it has no {name}"
        if sha256_of_file(path) != digest:
            return f"{name} has changed since it was written (its SHA-256 differs)"
    return None


def _find_foreign_objects(path: Path) -> str | None:
    """Describe why torch would refuse a file of tensors and numbers; None if it would not. No code in it is run."""
    if not zipfile.is_zipfile(path):
        return f"{path.name} is truncated"
    try:
        with safe_globals():  # as Trainer loads it; memory-mapped, so that tensors are not read
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return f"{path.name} holds something else than tensors and numbers, which could run code"
    except (RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        return f"{path.name} is damaged ({type(error).__name__})"
    return None


def find_damage(folder: Path) -> str | None:
    """Describe what is wrong with a checkpoint; None if it is complete.

    trainer_state.json is written last. An existing file may still be truncated by a full disk or an interrupted copy,
    which shows at its end, or be changed by a faulty disk, which shows by its checksum if the checkpoint has them.
    """
    for name in ("trainer_state.json", "config.json"):
        if not (folder / name).is_file():
            return f"it has no {name}"
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError:
            return f"{name} is truncated"
        if name == "trainer_state.json":
            # Checkpoints of older versions do not have it.
            progress = content.get("stateful_callbacks", {}).get("Progress", {})
            processes = progress.get("attributes", {}).get("processes", 1)
    for part, patterns in PARTS.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            return f"it lacks {part}"
    states = len([*folder.glob("rng_state*.pth")])
    if states < processes:
        return f"it has the random state of only {states} of {processes} processes"
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError):
                return f"{path.name} is truncated"
        elif path.suffix in (".pt", ".pth", ".bin") and (damage := _find_foreign_objects(path)):
            return damage
    return find_changes(folder)
