"""Stages of the work that a fault campaign disturbs: each is a command and the files that it must make."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# How often each fault is drawn, relative to the others.
FAULTS = {"kill": 10, "terminate": 2, "file_limit": 3, "full_disk": 2, "memory": 2, "changed_data": 2, "pause": 1}
FAULTS |= {"clock": 1, "clock_set_back": 2, "other_data": 2, "read_only": 2, "read_only_data": 1}


@dataclass(frozen=True)
class Stage:
    """A command that is disturbed and then repeated.

    Args:
        words: of `hf-medtl`, or of recipes/study.py if the first is "study". {runs}, {out}, {data}, {vit}, {steady},
            {cnn}, {segformer} and {hub} are replaced: the folder of finished runs a and b, the folder to write to, the
            images, four small checkpoints (steady: vit without dropout) and a repository of its own.
        same: patterns of files, below {out} or {runs}, that a repeated command gives bit by bit.
        again: words of the repeated command that are not in the first.
        processes: number of processes of a distributed run.
        faults: how often each is drawn, relative to the others.
    """

    words: str
    same: tuple[str, ...]
    again: str = ""
    processes: int = 1
    faults: Mapping[str, int] = field(default_factory=lambda: FAULTS)


_TRAIN = (
    "train --dataset brain-phantoms --data_dir {data} --model_name_or_path {vit} --output_dir {out}/run --use_cpu true"
    " --per_device_train_batch_size 8 --num_train_epochs 3 --seed 1 --augmentation brain --early_stopping_patience 0"
)
_RESUME = "--resume_from_checkpoint auto"
_WEIGHTS = ("run/model.safetensors", "run/predictions.csv", "run/splits.csv")
_FOLDS = ("run/fold-*/model.safetensors", "run/predictions.csv")

STAGES = {
    "training": Stage(
        f"{_TRAIN} --save_strategy steps --save_steps 3 --eval_strategy steps --eval_steps 3", _WEIGHTS, _RESUME
    ),
    "training_averaged": Stage(f"{_TRAIN} --ema_decay 0.9", _WEIGHTS, _RESUME),
    "features": Stage(f"{_TRAIN} --strategy feature_extraction --augmentation none", _WEIGHTS, _RESUME),
    "distributed": Stage(_TRAIN, _WEIGHTS, _RESUME, processes=2, faults=FAULTS | {"pause": 4, "lost_process": 6}),
    # Two, one, two processes: without dropout, whose masks each process draws for its own images.
    "renumbered": Stage(_TRAIN.replace("{vit}", "{steady}"), _WEIGHTS, _RESUME, processes=2, faults={"number": 1}),
    "masks": Stage(
        _TRAIN.replace("brain", "chest").replace("{vit}", "{segformer}") + " --task image-segmentation --image_size 64",
        _WEIGHTS,
        _RESUME,
    ),
    "folds": Stage(f"{_TRAIN} --num_train_epochs 1 --folds 3", _FOLDS, _RESUME),
    "search": Stage(f"{_TRAIN} --num_train_epochs 1 --search 3", ("run/best.yaml",)),
    "study": Stage(
        _TRAIN.replace("train", "study", 1).replace("--model_name_or_path {vit} ", "").replace("--seed 1 ", "")
        + " --num_train_epochs 1 --models {cnn} --strategies full --fractions 50 100 --seeds 1",
        ("run/cells/*/model.safetensors", "run/cells/*/predictions.csv"),
    ),
    "ensemble": Stage(
        "ensemble {runs}/a {runs}/b --output_dir {out}/both", ("both/*.safetensors", "both/predictions.csv")
    ),
    "evaluate": Stage(
        "evaluate {runs}/a --dataset brain-phantoms --data_dir {data} --drop_overlap --out {out}/evaluated",
        ("evaluated/predictions.csv",),
    ),
    "explain": Stage(
        "explain {runs}/a --data_dir {data} --device cpu --number 4 --sample 4", ("a/explanations/explanations.json",)
    ),
    "export": Stage("export {runs}/a --data_dir {data}", ("a/export/onnx/model.onnx",)),
    "report": Stage("report {runs}/a {runs}/b --data_dir {data} --out {out}/report.html", ()),
    "compare": Stage(
        "compare {runs}/a {runs}/b --data_dir {data} --no_latency --out {out}/compared", ("compared/comparison.json",)
    ),
    "card": Stage("card write {runs}/a", ("a/README.md",)),
    "push": Stage("push {runs}/a {hub}", ()),
    "data_push": Stage(
        "data push brain-phantoms {hub} --data_dir {data} --rights_held --out {out}/files", ("files/splits.csv",)
    ),
    "predict": Stage(
        "predict {runs}/a {data} --device cpu --out {out}/table.csv --maps {out}/maps --explain gradcam",
        ("table.csv", "maps/**/*.png"),
    ),
    "predict_masks": Stage(
        "predict {segformer} {data} --device cpu --out {out}/table.csv --masks {out}/masks",
        ("table.csv", "masks/**/*.png"),
    ),
    "audit": Stage("data audit brain-phantoms --data_dir {data} --out {out}/audit", ()),
}
