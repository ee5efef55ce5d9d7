"""Options of a run: names, defaults, help texts and choices; light to import. `recipe.py` checks their combinations."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_medtl.common.text import nearest
from hf_medtl.data.specs import DATASETS
from hf_medtl.errors import MedtlError

# The modules that implement these import torch, which takes seconds; tests/training/test_command_line.py compares them.
FITTED_STRATEGIES = ("linear_probe", "knn")
CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("image-classification", "image-segmentation"),
    "augmentation": ("none", "light", "chest", "brain", "randaugment"),
    "fit": ("squash", "pad"),
    "pooling": ("cls", "mean", "attention"),
    "strategy": (
        "full",
        "feature_extraction",
        "last_n",
        "progressive",
        "differential",
        "lp_ft",
        "lora",
        *FITTED_STRATEGIES,
    ),
    "loss": ("cross_entropy", "focal", "dice", "bce_dice", "tversky", "focal_tversky"),
    "class_weights": ("none", "balanced", "effective"),
    "mixed_precision": ("auto", "no", "bf16", "fp16"),
}
# Options with several of these values, separated by commas.
LISTS: dict[str, tuple[str, ...]] = {
    "preprocessing": ("brain_crop", "lung_crop", "grayscale", "blur", "clahe"),
    "figures": ("png", "pdf", "svg"),
}
OWN_NETWORKS = ("cnn", "cnn_baseline", "vit_tiny", "unet", "unetplusplus", "deeplabv3plus", "fpn", "manet", "segformer")
THRESHOLD_RULES = "youden, sensitivity=0.95, specificity=0.95, cost=5, prevalence=0.1, or a probability such as 0.5"

# Excluded from recipe.yaml: machine-specific paths, which must not be published.
PRIVATE_OPTIONS = (
    *("allow_changes", "config", "data_dir", "dry_run", "external_data_dir", "hub_token", "model_card", "output_dir"),
    *("resume_from_checkpoint", "splits"),
)

# Options of training steps, which strategies that fit a classifier on features do not have.
STEP_OPTIONS = (
    *("augmentation", "auto_find_batch_size", "cache_features", "cutmix", "dataloader_drop_last", "deepspeed"),
    *("early_stopping_patience", "ema_decay", "eval_delay", "eval_on_start", "eval_steps", "eval_strategy"),
    *("focal_gamma", "fsdp", "gradient_accumulation_steps", "gradient_checkpointing", "activation_checkpointing"),
    *("head_dropout", "head_learning_rate", "hub_always_push", "hub_strategy", "label_smoothing_factor"),
    *("learning_rate", "load_best_model_at_end", "loss", "lr_scheduler_kwargs", "lr_scheduler_type", "lr_step_epochs"),
    *("lr_step_factor", "max_grad_norm", "max_steps", "mixup", "neftune_noise_alpha", "num_train_epochs", "optim"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "optim_target_modules"),
    *("per_device_train_batch_size", "save_only_model", "save_steps", "save_strategy", "save_total_limit"),
    *("oversampling", "torch_compile", "torch_compile_backend", "torch_compile_mode", "warmup_steps", "weight_decay"),
)

# Folders or Hub ids of models: only the name of a folder goes to recipe.yaml and to trackers.
MODEL_OPTIONS = ("model_name_or_path", "encoder_weights", "lung_model")

# Paths, or names that may be paths.
PATH_OPTIONS = (
    *("accelerator_config", "config", "data_dir", "deepspeed", "external_data_dir", "fsdp_config", "model_card"),
    *("output_dir", "resume_from_checkpoint", "splits", *MODEL_OPTIONS),
)


class Unchosen(str):
    """A default value that can be told from the same value of a user."""


def _new(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Options:
    """Options of this project, and those of `transformers.TrainingArguments` with another default here, flat.

    These are the names of flags and YAML keys.
    """

    config: str | None = _new(None, "YAML file with any of these options; command-line flags take precedence.")
    dry_run: bool = _new(False, "Check data, model, disk space and options, print the plan and exit without training.")
    search: int = _new(0, "Number of hyperparameter trials, scored on the validation split. 0 disables the search.")
    search_space: dict | str | None = _new(  # noqa: RUF009 - makes a field
        None, "Search space: {learning_rate: [1e-6, 1e-3, log], mixup: [0, 0.4], augmentation: [light, brain]}."
    )
    dataset: str = _new(
        Unchosen("brain-tumor-mri"),
        f"Dataset: {', '.join(DATASETS)}, or a Hub id such as owner/name. With --data_dir alone: your own images.",
    )
    data_dir: str | None = _new(None, "Folder or file with the data. Downloaded (or generated) if omitted.")
    task: str | None = _new(None, "Learning task. Default: the task of the dataset.")
    mask_values: str | None = _new(
        None, "Class of each gray value in multi-class masks, background first: 0=background,128=lungs,255=heart."
    )
    columns: str = _new(
        "", "Columns of a table by other names: file_name=Path,label=Finding,patient=PatientID; mask, split, source."
    )
    sources: str = _new(
        "", "Comma-separated sources (hospitals or collections) to use, where the dataset names them. Default: all."
    )
    positive_label: str | None = _new(
        None, "Positive one of two labels: the finding to detect. Default: the dataset's own, or chosen by the names."
    )
    official_split: bool = _new(True, "Use the official test split of the dataset, if it has one.")
    validation_fraction: float = _new(
        0.15, "Fraction of the images for validation: early stopping, temperature and threshold."
    )
    test_fraction: float = _new(0.2, "Fraction of the images for the test split, on which results are reported.")
    train_fraction: float = _new(
        1.0, "Fraction of the training groups to train on. Smaller subsets are contained in larger ones."
    )
    folds: int = _new(0, "Number of cross-validation folds; one fold is the test split. 0 uses test_fraction instead.")
    fold: int | None = _new(None, "Index of the test fold, from 0. If omitted, every fold is the test split in turn.")
    splits: str | None = _new(None, "splits.csv of another run, to reuse exactly its split.")
    external_dataset: str | None = _new(
        None, "Second dataset to test on. Refused if images of it are also used in training."
    )
    external_data_dir: str | None = _new(None, "Folder or file of the external dataset. Downloaded if omitted.")
    external_columns: str = _new("", "Columns of the external dataset's table, as for --columns.")
    external_sources: str = _new("", "Comma-separated sources of the external dataset to test on.")
    external_labels: str | None = _new(
        None, "External labels that have other names here: viral_pneumonia=pneumonia,a=b."
    )
    drop_overlap: bool = _new(
        False, "Exclude images of the external dataset that are used in training, instead of refusing it."
    )
    split_seed: int | None = _new(None, "Seed of the split. Default: --seed.")
    model_name_or_path: str = _new(
        "google/vit-base-patch16-224-in21k",
        f"Backbone: Hub id, folder, timm/NAME or {' or '.join(OWN_NETWORKS[:3])}; "
        f"for segmentation, a segmentation model or one of {', '.join(OWN_NETWORKS[3:])}.",
    )
    encoder: str | None = _new(
        None, "Encoder of a new segmentation network, such as resnet34, mit_b0 or tu-convnext_tiny."
    )
    encoder_weights: str = _new("imagenet", "Encoder weights: 'imagenet', 'none' (random init) or a local folder.")
    image_size: int | str | None = _new(
        None,
        "Input height and width of the model in pixels; 128:5,224 trains 5 epochs at 128 pixels first. Default: the "
        "checkpoint's size, or 256 for a new segmentation network.",
    )
    pooling: str | None = _new(
        None, "Pooling of an image encoder (class token, mean of patches, its attention). Default: the encoder's own."
    )
    model_revision: str | None = _new(None, "Branch, tag or commit of the backbone on the Hub.")
    from_scratch: bool = _new(
        False, "Initialize the backbone with random weights. No network access is needed for timm/NAME then."
    )
    image_mean: str | None = _new(
        None,
        "Mean that images (pixels of 0 to 1) are normalised with, where the backbone does not say: 0.485,0.456,0.406.",
    )
    image_std: str | None = _new(
        None, "Standard deviation, likewise: 0.229,0.224,0.225. One number is for all channels."
    )
    head_dropout: float = _new(0.0, "Dropout rate before the classification head, such as 0.5.")
    augmentation: str = _new("light", "Augmentation of training images.")
    preprocessing: str = _new("", "Preprocessing steps, separated by commas.")
    lung_model: str | None = _new(None, "Hub id or folder of the segmentation model for the lung_crop step.")
    fit: str = _new("squash", "Resizing to the model's input size; pad keeps the aspect ratio.")
    tile: int = _new(
        0,
        "Side in pixels of overlapping tiles that images are cut into at their own resolution, to learn and predict "
        "masks, instead of resizing them to --image_size. 0 resizes.",
    )
    largest_components: int = _new(
        0, "Number of largest components to keep per class in a predicted mask. 0 keeps all."
    )
    fill_holes: bool = _new(False, "Fill holes in predicted masks.")
    surface_tolerance: str = _new(
        "2", "Distance of outlines that counts as none in the surface Dice: in pixels of the image, or such as 1.5mm."
    )
    mixup: float = _new(0.0, "Mixup alpha: mixing weights are sampled from Beta(alpha, alpha). 0 disables mixup.")
    cutmix: float = _new(0.0, "CutMix alpha: patch area is sampled from Beta(alpha, alpha). 0 disables CutMix.")
    head_learning_rate: float | None = _new(None, "Learning rate of the new head. Default: --learning_rate.")
    strategy: str = _new("full", "Fine-tuning strategy.")
    unfreeze_blocks: int = _new(1, "Strategy last_n: number of blocks trained with the head.")
    unfreeze_schedule: str = _new(
        "", "Strategy progressive: epoch:blocks pairs such as 2:1,4:3,6:all. Default: evenly over the first half."
    )
    layer_decay: float = _new(
        0.75, "Strategy differential: factor of the learning rate from each block to the previous one."
    )
    probe_epochs: int = _new(3, "Strategy lp_ft: epochs in which only the head is trained.")
    lora_rank: int = _new(8, "Strategy lora: rank of the adapters.")
    lora_alpha: int = _new(16, "Strategy lora: the output of the adapters is scaled by lora_alpha / lora_rank.")
    cache_features: bool = _new(
        True, "Compute the features of a frozen body only once (feature_extraction, first stage of lp_ft)."
    )
    feature_views: int = _new(4, "Number of augmented views per image with cache_features; epochs cycle through them.")
    loss: str = _new("cross_entropy", "Training and validation loss.")
    class_weights: str = _new("none", "Class weights of the loss, from the labels or pixels of the training split.")
    oversampling: float = _new(
        0.0,
        "Fraction of the training images below which a class is rare: images with it are repeated sqrt(this / its "
        "fraction) times in an epoch, such as 0.5. 0 disables it.",
    )
    effective_beta: float = _new(0.999, "Beta of the effective number of samples (class_weights=effective).")
    focal_gamma: float = _new(2.0, "Gamma of the focal loss.")
    ema_decay: float = _new(
        0.0, "Decay of the moving average of the weights that is evaluated and saved, such as 0.999. 0 disables it."
    )
    lr_step_epochs: float = _new(
        0.0, "Epochs between steps of a step schedule, which replaces lr_scheduler_type. 0 disables it."
    )
    lr_step_factor: float = _new(0.1, "Factor by which the learning rate is multiplied every lr_step_epochs epochs.")
    early_stopping_patience: int = _new(
        5, "Number of evaluations without improvement after which training stops. 0 disables early stopping."
    )
    threshold: str = _new(
        "youden", f"Decision threshold of the positive label, or the rule to choose it: {THRESHOLD_RULES}."
    )
    conformal_alpha: float = _new(
        0.1, "Error rate of conformal prediction: fraction of label sets that may miss the true label."
    )
    mixed_precision: str = _new("auto", "Mixed precision; auto is bf16 or fp16 if the hardware supports it.")
    model_card: str | None = _new(None, "Markdown file with text for the model card.")
    figures: str = _new("png", "Formats of figures, separated by commas; png (300 dpi) is always written.")
    model_license: str | None = _new(
        None, "License of the fine-tuned weights, as the Hub names it. Default: the strictest of data and base model."
    )
    license_waiver: str | None = _new(
        None, "Sentence for the card: who permits a license that allows more than those of data and base model."
    )
    push_to_hub: bool = _new(False, "Publish the finished run as a model repository on the Hub.")
    hub_model_id: str | None = _new(
        None, "Repository: OWNER/NAME. Default: the name of --output_dir, under your account."
    )
    hub_private_repo: bool | None = _new(None, "Create a private repository.")
    publish_names: bool = _new(
        False, "Name images by their files on the card and in published tables; by numbers if not, unless known anyway."
    )

    output_dir: str | None = _new("runs/run", "Folder of the run.")
    seed: int = _new(42, "Random seed of weights, batches and augmentation; of the split, too, without --split_seed.")
    resume_from_checkpoint: str | None = _new(
        None, "auto goes on from the newest complete checkpoint in --output_dir; a folder, from that one."
    )
    allow_changes: bool = _new(
        False, "Resume with another preprocessing, augmentation, loss or metric than before; the card tells of it."
    )
    num_train_epochs: float = _new(10.0, "Number of epochs at most.")
    per_device_train_batch_size: int = _new(16, "Images in a batch.")
    per_device_eval_batch_size: int = _new(32, "Images in a batch of evaluation.")
    # Not the enum of TrainingArguments, which does not have adam.
    optim: str = "adamw_torch_fused"
    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    logging_steps: float = 5
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "loss"
    hub_strategy: str = "end"
    report_to: str | list[str] | None = _new(  # noqa: RUF009 - makes a field
        "none", "Trackers of metrics: none, all, or names such as trackio, tensorboard, wandb."
    )
    restore_callback_states_from_checkpoint: bool = True
    ddp_find_unused_parameters: bool | None = False
    do_train: Any = None  # so that False can be told from the default, and be refused
    # Trainer would drop the columns that are not in the model's signature, among them the images.
    remove_unused_columns: bool = False


def check_choices(values: Mapping[str, Any]) -> None:
    """Check the options that have a fixed set of values.

    Args:
        values: option -> value.

    Raises:
        MedtlError: another value, with all that are allowed and the nearest.
    """
    for option, choices in CHOICES.items():
        if (value := values[option]) is not None and value not in choices:
            raise MedtlError(
                f"--{option} must be {', '.join(choices[:-1])} or {choices[-1]}, but is {value!r}."
                f"{nearest(str(value), choices)}"
            )


def check_name_length(option: str, path: Any) -> None:
    """Raise MedtlError if a path is none, or has a name longer than file systems allow, which would be an OSError."""
    if not isinstance(path, str | os.PathLike | None):
        raise MedtlError(f"--{option} must be a text, but is {path!r}. In YAML, put it in quotation marks.")
    if not isinstance(path, str) or path.lstrip().startswith("{"):  # settings themselves, in JSON
        return
    longest = max((len(part.encode("utf-8", "replace")) for part in Path(path).parts), default=0)
    if longest > 255:
        raise MedtlError(f"--{option} has a name of {longest} bytes; files and folders have 255 at most. Shorten it.")


def strip_path(name: str) -> str:
    """Return the name of a folder without its path; other names as they are."""
    return Path(name).resolve().name if Path(name).exists() else name
