"""Options of a run: names, defaults and help texts; `recipe.py` checks the values."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_medtl.data import augmentation as augment
from hf_medtl.data.specs import DATASETS
from hf_medtl.evaluation.decisions import THRESHOLD_RULES
from hf_medtl.models.cnn import PRESETS
from hf_medtl.models.preprocessing import STEPS
from hf_medtl.models.smp import ARCHITECTURES
from hf_medtl.models.strategies import STRATEGIES
from hf_medtl.training import losses, mask_losses
from hf_medtl.training.losses import CLASS_WEIGHTS

LOSSES = tuple(dict.fromkeys((*losses.LOSSES, *mask_losses.LOSSES)))  # each task checks which ones it has


def _our(name: str, default: Any) -> Any:
    """Return a field of TrainingArguments with our default and the original help."""
    return field(default=default, metadata=TrainingArguments.__dataclass_fields__[name].metadata)


def _new(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Options(TrainingArguments):
    """The fields below and every field of `transformers.TrainingArguments`, flat: the names of flags and YAML keys."""

    config: str | None = _new(None, "YAML file with any of these options; command-line flags take precedence.")
    dry_run: bool = _new(False, "Check data, model, disk space and options, print the plan and exit without training.")
    search: int = _new(0, "Number of hyperparameter trials, scored on the validation split. 0 disables the search.")
    search_space: dict | str | None = _new(  # noqa: RUF009 - makes a field
        None, "Search space: {learning_rate: [1e-6, 1e-3, log], mixup: [0, 0.4], augmentation: [light, brain]}."
    )
    dataset: str = _new("brain-tumor-mri", f"Dataset: {', '.join(DATASETS)}, or a Hub id such as owner/name.")
    data_dir: str | None = _new(None, "Folder or file with the data. Downloaded (or generated) if omitted.")
    task: str | None = _new(None, "image-classification or image-segmentation. Default: the task of the dataset.")
    mask_values: str | None = _new(
        None, "Class of each gray value in multi-class masks, background first: 0=background,128=lungs,255=heart."
    )
    sources: str = _new(
        "", "Comma-separated sources (hospitals or collections) to use, where the dataset names them. Default: all."
    )
    positive_label: str | None = _new(None, "Positive label of a binary task, if the dataset does not define it.")
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
        f"Backbone: Hub id, folder, timm/NAME or {' or '.join(PRESETS)}; "
        f"for segmentation, a segmentation model or one of {', '.join(ARCHITECTURES)}.",
    )
    encoder: str | None = _new(
        None, "Encoder of a new segmentation network, such as resnet34, mit_b0 or tu-convnext_tiny."
    )
    encoder_weights: str = _new("imagenet", "Encoder weights: 'imagenet', 'none' (random init) or a local folder.")
    image_size: int | None = _new(
        None, "Input height and width of the segmentation network in pixels. Default: 256, or the checkpoint's size."
    )
    model_revision: str | None = _new(None, "Branch, tag or commit of the backbone on the Hub.")
    from_scratch: bool = _new(
        False, "Initialize the backbone with random weights. No network access is needed for timm/NAME then."
    )
    head_dropout: float = _new(0.0, "Dropout rate before the classification head, such as 0.5.")
    augmentation: str = _new("light", f"Augmentation of training images: {', '.join(augment.AUGMENTATIONS)}.")
    preprocessing: str = _new("", f"Comma-separated preprocessing steps: {', '.join(STEPS)}.")
    lung_model: str | None = _new(None, "Hub id or folder of the segmentation model for the lung_crop step.")
    fit: str = _new("squash", "Resizing to the model's input size: squash, or pad to keep the aspect ratio.")
    largest_components: int = _new(
        0, "Number of largest components to keep per class in a predicted mask. 0 keeps all."
    )
    fill_holes: bool = _new(False, "Fill holes in predicted masks.")
    mixup: float = _new(0.0, "Mixup alpha: mixing weights are sampled from Beta(alpha, alpha). 0 disables mixup.")
    cutmix: float = _new(0.0, "CutMix alpha: patch area is sampled from Beta(alpha, alpha). 0 disables CutMix.")
    head_learning_rate: float | None = _new(None, "Learning rate of the new head. Default: --learning_rate.")
    strategy: str = _new("full", f"Fine-tuning strategy: {', '.join(STRATEGIES)}.")
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
    loss: str = _new("cross_entropy", f"Training and validation loss: {', '.join(LOSSES)}.")
    class_weights: str = _new(
        "none", f"Class weights of the loss, from the training split: {', '.join(CLASS_WEIGHTS)}."
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
    mixed_precision: str = _new(
        "auto", "Mixed precision: auto (bf16 or fp16 if the hardware supports it), no, bf16 or fp16."
    )
    model_card: str | None = _new(None, "Markdown file with text for the model card.")
    figures: str = _new("png", "Formats of figures, separated by commas: png (always written, 300 dpi), pdf, svg.")
    model_license: str = _new("apache-2.0", "License of the fine-tuned weights, as the Hub names it.")

    output_dir: str | None = _our("output_dir", "runs/run")
    num_train_epochs: float = _our("num_train_epochs", 10.0)
    per_device_train_batch_size: int = _our("per_device_train_batch_size", 16)
    per_device_eval_batch_size: int = _our("per_device_eval_batch_size", 32)
    # A string, because the enum of TrainingArguments does not have adam.
    optim: str = _our("optim", TrainingArguments.__dataclass_fields__["optim"].default)
    learning_rate: float = _our("learning_rate", 2e-5)
    weight_decay: float = _our("weight_decay", 0.01)
    lr_scheduler_type: str = _our("lr_scheduler_type", "cosine")
    warmup_steps: float = _our("warmup_steps", 0.1)
    eval_strategy: str = _our("eval_strategy", "epoch")
    save_strategy: str = _our("save_strategy", "epoch")
    logging_steps: float = _our("logging_steps", 5)
    save_total_limit: int | None = _our("save_total_limit", 2)
    load_best_model_at_end: bool = _our("load_best_model_at_end", True)
    metric_for_best_model: str | None = _our("metric_for_best_model", "loss")
    hub_strategy: str = _our("hub_strategy", "end")
    report_to: str = _our("report_to", "none")
    restore_callback_states_from_checkpoint: bool = _our("restore_callback_states_from_checkpoint", True)
    ddp_find_unused_parameters: bool | None = _our("ddp_find_unused_parameters", False)
    # Trainer would drop the columns that are not in the model's signature, among them the images.
    remove_unused_columns: bool = _our("remove_unused_columns", False)
