"""Options: what can be given for a run, with its default and help; `recipe.py` says what of it can work."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_medtl.data import augmentation as augment
from hf_medtl.data.specs import DATASETS
from hf_medtl.evaluation.decisions import FORMS
from hf_medtl.models.cnn import PRESETS
from hf_medtl.models.preprocessing import STEPS
from hf_medtl.models.smp import ARCHITECTURES
from hf_medtl.models.strategies import STRATEGIES
from hf_medtl.training import losses, mask_losses
from hf_medtl.training.losses import CLASS_WEIGHTS

LOSSES = tuple(dict.fromkeys((*losses.LOSSES, *mask_losses.LOSSES)))  # which task has which: `tasks.py`


def _our(name: str, default: Any) -> Any:
    """A field of TrainingArguments with another default and the same help."""
    return field(default=default, metadata=TrainingArguments.__dataclass_fields__[name].metadata)


def _new(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Options(TrainingArguments):
    """The fields below and every field of `transformers.TrainingArguments`, flat: names of flags and of YAML keys."""

    config: str | None = _new(None, "YAML file with any of these keys; flags given beside it win.")
    dry_run: bool = _new(False, "Check data, model, disk and flags, print what would run, and stop.")
    search: int = _new(0, "Try so many configurations, judged on the validation split, instead of one run; 0 = off.")
    search_space: dict | str | None = _new(  # noqa: RUF009 - makes a field
        None, "What it may change: {learning_rate: [1e-6, 1e-3, log], mixup: [0, 0.4], augmentation: [light, brain]}."
    )
    dataset: str = _new("brain-tumor-mri", f"One of {', '.join(DATASETS)}, or an id on the Hub, such as owner/name.")
    data_dir: str | None = _new(None, "Folder or file with the data; downloaded (or generated) if not given.")
    task: str | None = _new(None, "The data set's own if not given; image-segmentation learns its masks.")
    mask_values: str | None = _new(
        None, "Grey values of masks of several classes, the background first: 0=background,128=lungs,255=heart."
    )
    sources: str = _new("", "Learn from these hospitals or collections only, with commas, where pictures say theirs.")
    positive_label: str | None = _new(None, "The positive one of two labels, where the data set does not say.")
    official_split: bool = _new(True, "Keep the data set's own test split, where it has one.")
    validation_fraction: float = _new(0.15, "Share of the pictures for early stopping, temperature and threshold.")
    test_fraction: float = _new(0.2, "Share of the pictures for the reported results.")
    train_fraction: float = _new(
        1.0, "Learn from this share of the training groups; smaller shares are in larger ones."
    )
    folds: int = _new(0, "Cut the pictures into so many folds, one of which is the test split; 0 = use test_fraction.")
    fold: int | None = _new(
        None, "Which of the folds, from 0, is the test split; all, one after the other, if not given."
    )
    splits: str | None = _new(None, "splits.csv of another run, to repeat its split exactly.")
    external_dataset: str | None = _new(None, "Second data set to test on; refused if training sees its pictures.")
    external_data_dir: str | None = _new(None, "Its folder or file; downloaded if not given.")
    external_sources: str = _new("", "Its sources to test on, as --sources.")
    external_labels: str | None = _new(None, "Its labels in ours, where names differ: viral_pneumonia=pneumonia,a=b.")
    drop_overlap: bool = _new(False, "Leave out of the second data set what training sees, instead of refusing.")
    split_seed: int | None = _new(None, "Seed of the split; the same as --seed if not given.")
    model_name_or_path: str = _new(
        "google/vit-base-patch16-224-in21k",
        f"Hub id or folder of the backbone, or {' or '.join(PRESETS)}; "
        f"of a segmentation model, or one of {', '.join(ARCHITECTURES)}.",
    )
    encoder: str | None = _new(None, "Of a new segmentation network, such as resnet34, mit_b0 or tu-convnext_tiny.")
    encoder_weights: str = _new("imagenet", "Its weights: imagenet, none for random ones, or a folder.")
    image_size: int | None = _new(None, "Its height and width in pixels; 256, or the checkpoint's, if not given.")
    model_revision: str | None = _new(None, "Branch, tag or commit of the backbone on the Hub.")
    from_scratch: bool = _new(
        False, "Take only the architecture, with random weights; timm/NAME then needs no network."
    )
    head_dropout: float = _new(0.0, "Share of the head's inputs that training drops, such as 0.5.")
    augmentation: str = _new("light", f"One of {', '.join(augment.NAMES)}.")
    preprocessing: str = _new("", f"Steps before the model, with commas: some of {', '.join(STEPS)}.")
    lung_model: str | None = _new(None, "Hub id or folder of the segmentation model that lung_crop needs.")
    fit: str = _new("squash", "How a picture gets the model's size: squash, or pad to keep the aspect.")
    largest_components: int = _new(0, "Keep so many components of each class of a predicted mask; 0 = all.")
    fill_holes: bool = _new(False, "Fill the holes of a predicted mask.")
    mixup: float = _new(0.0, "Blend pairs of training pictures, with shares drawn from Beta(a, a) of this a; 0 = off.")
    cutmix: float = _new(0.0, "Paste a box of one training picture into another, with areas drawn so; 0 = off.")
    head_learning_rate: float | None = _new(None, "Learning rate of the new head; --learning_rate if not given.")
    strategy: str = _new("full", f"What trains: {', '.join(STRATEGIES)}.")
    unfreeze_blocks: int = _new(1, "last_n: how many blocks train with the head.")
    unfreeze_schedule: str = _new("", "progressive: epoch:blocks, as 2:1,4:3,6:all; evenly to the middle if empty.")
    layer_decay: float = _new(0.75, "differential: factor of the learning rate from a block to the one before it.")
    probe_epochs: int = _new(3, "lp_ft: epochs in which the head alone trains.")
    lora_rank: int = _new(8, "lora: rank of the adapters.")
    lora_alpha: int = _new(16, "lora: the adapters' output is multiplied by this / rank.")
    cache_features: bool = _new(True, "Compute a frozen body once (feature_extraction, and the probe of lp_ft).")
    feature_views: int = _new(4, "Augmented views of each picture then; epochs take turns with them.")
    loss: str = _new("cross_entropy", f"One of {', '.join(LOSSES)}; validation's loss is the same.")
    class_weights: str = _new("none", f"Of the loss, from the training split: {', '.join(CLASS_WEIGHTS)}.")
    effective_beta: float = _new(0.999, "The beta of --class_weights effective.")
    focal_gamma: float = _new(2.0, "The gamma of --loss focal.")
    ema_decay: float = _new(0.0, "Decay of an average of the weights, to be evaluated and saved (0.999, say); 0 = off.")
    lr_step_epochs: float = _new(0.0, "Lower the learning rate every so many epochs, for --lr_scheduler_type; 0 = off.")
    lr_step_factor: float = _new(0.1, "The factor then.")
    early_stopping_patience: int = _new(5, "Evaluations without improvement before training stops; 0 = never.")
    threshold: str = _new("youden", f"From which probability the positive label is decided: {FORMS}.")
    conformal_alpha: float = _new(0.1, "Share of pictures whose conformal set of labels may lack the true one.")
    mixed_precision: str = _new("auto", "auto (bf16 or fp16 where the hardware has it), no, bf16 or fp16.")
    model_card: str | None = _new(None, "Markdown file with the prose of the model card.")
    model_license: str = _new("apache-2.0", "Licence of the fine-tuned weights, by the Hub's name.")

    output_dir: str | None = _our("output_dir", "runs/run")
    num_train_epochs: float = _our("num_train_epochs", 10.0)
    per_device_train_batch_size: int = _our("per_device_train_batch_size", 16)
    per_device_eval_batch_size: int = _our("per_device_eval_batch_size", 32)
    # Text, or the command line would refuse adam.
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
    # Trainer would drop the columns that it does not find in the model's signature, the pictures among them.
    remove_unused_columns: bool = _our("remove_unused_columns", False)
