"""Which checkpoint training can go on from."""

import json
import logging
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from hf_medtl.errors import MedtlError

logger = logging.getLogger("hf_medtl")

# What Trainer, FSDP or DeepSpeed call the parts without which training would start them anew, and say nothing.
PARTS = {
    "weights": ("*.safetensors", "pytorch_model*", "global_step*"),
    "an optimizer": ("optimizer*", "global_step*"),
    "a scheduler": ("scheduler.pt", "global_step*"),
    "a random state": ("rng_state*.pth",),
}


def find_checkpoint(wish: str | None, output_dir: Path, labels: tuple[str, ...]) -> str | None:
    """Folder to resume from: "auto" or "true" is the newest whole checkpoint below `output_dir`, or None.

    Raises:
        MedtlError: the folder is no whole checkpoint, or one of other labels.
    """
    if not wish or str(wish).lower() in ("none", "false", "no"):
        return None
    folder = Path(wish)
    if str(wish).lower() in ("auto", "true", "last"):
        newest = sorted(output_dir.glob("checkpoint-*"), key=lambda p: int(p.name.removeprefix("checkpoint-")))[::-1]
        found = next((path for path in newest if _is_whole(path)), None)
        if found is None:
            return None
        folder = found
    if wrong := damage(folder):
        raise MedtlError(
            f"{folder} is not a whole checkpoint: {wrong}. Give a checkpoint-* folder of the run, "
            "or --resume_from_checkpoint auto."
        )
    found_labels = tuple(AutoConfig.from_pretrained(folder).id2label.values())
    if found_labels != labels:
        raise MedtlError(
            f"{folder} is a checkpoint for the labels {', '.join(found_labels)}; this data set has {', '.join(labels)}."
            " Resume with the data set that it was made with, or give it as --model_name_or_path to start from it."
        )
    return str(folder)


def _is_whole(folder: Path) -> bool:
    wrong = damage(folder)
    if wrong:
        logger.warning("%s is passed over: %s.", folder, wrong)
    return wrong is None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole.

    trainer_state.json is written last. A file that is there may still be cut short, by a full disk or a copy that was
    broken off; that shows at its end.
    """
    for name in ("trainer_state.json", "config.json"):
        if not (folder / name).is_file():
            return f"it has no {name}"
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError:
            return f"{name} is cut short"
        if name == "trainer_state.json":
            # Of a checkpoint that an older version made it is not known.
            progress = content.get("stateful_callbacks", {}).get("Progress", {})
            processes = progress.get("attributes", {}).get("processes", 1)
    for part, patterns in PARTS.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            return f"it lacks {part}"
    states = len([*folder.glob("rng_state*.pth")])
    if states < processes:
        return f"it has the random state of {states} of {processes} processes"
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError):
                return f"{path.name} is cut short"
        elif path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
            return f"{path.name} is cut short"
    return None
