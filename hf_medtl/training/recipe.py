"""Recipe: everything one run needs, flat."""

import copy
import dataclasses
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from hf_medtl.data import augment
from hf_medtl.data.specs import DATASETS
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.decisions import FORMS
from hf_medtl.evaluation.postprocessing import check_postprocessing
from hf_medtl.models.build import is_ours
from hf_medtl.models.cnn import PRESETS
from hf_medtl.models.preprocessing import STEPS, check_steps
from hf_medtl.models.smp import ARCHITECTURES
from hf_medtl.models.strategies import STRATEGIES, Strategy
from hf_medtl.training import losses, mask_losses
from hf_medtl.training.batches import divide
from hf_medtl.training.command_line import nearest, read_options
from hf_medtl.training.losses import CLASS_WEIGHTS
from hf_medtl.training.tracking import check_trackers

logger = logging.getLogger("hf_medtl")

# Left out of recipe.yaml: they say where the run was made, not how, and would carry paths to the Hub.
PLACES = (
    *("config", "data_dir", "dry_run", "external_data_dir", "hub_token", "model_card", "output_dir"),
    *("resume_from_checkpoint", "splits"),
)

# Folders of models or their ids: of a folder only the name goes to recipe.yaml and to trackers.
MODELS = ("model_name_or_path", "encoder_weights", "lung_model")

# Option -> the strategies that it belongs to.
OWNERS = {
    "unfreeze_blocks": ("last_n",),
    "unfreeze_schedule": ("progressive",),
    "layer_decay": ("differential",),
    "probe_epochs": ("lp_ft",),
    "lora_rank": ("lora",),
    "lora_alpha": ("lora",),
    "feature_views": ("feature_extraction", "lp_ft"),
}

LOWER_IS_BETTER = ("loss", "brier", "ece", "hausdorff95")  # TrainingArguments knows of losses alone

LOSSES = tuple(dict.fromkeys((*losses.LOSSES, *mask_losses.LOSSES)))  # which task has which: `tasks.py`


def _our(name: str, default: Any) -> Any:
    """A field of TrainingArguments with another default and the same help."""
    return field(default=default, metadata=TrainingArguments.__dataclass_fields__[name].metadata)


def _new(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Recipe(TrainingArguments):
    """What to learn from what, and how: the fields below and every field of `transformers.TrainingArguments`.

    Raises:
        MedtlError: a value that can't work, with what would.
    """

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

    def __post_init__(self) -> None:
        # Before values are resolved for this machine. A second Recipe to compare with would reset the process group.
        self._chosen = {
            f.name: value
            for f in dataclasses.fields(self)
            for value, usual in [(getattr(self, f.name), default_of(f))]
            if f.name not in PLACES and value != usual
            if value or type(value) is int or usual not in (None, "", "no", False)  # 0 is a number, False is nothing
        }
        for option in MODELS:
            if option in self._chosen:
                self._chosen[option] = without_place(getattr(self, option))
        self._named: set[str] = set()
        self.task = self.task or DATASETS.get(self.dataset, DATASETS["imagefolder"]).task
        if self.mixed_precision not in ("auto", "no", "bf16", "fp16"):
            raise MedtlError(f"--mixed_precision is auto, no, bf16 or fp16, found {self.mixed_precision!r}.")
        self.from_scratch |= is_ours(self.model_name_or_path)
        self._set_precision(self.mixed_precision)
        if self.hub_token:  # the environment is where it can't be saved with the arguments
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        self.split_seed = self.seed if self.split_seed is None else self.split_seed
        self.label_names = ["labels"]
        optimizers = ["adam", *(name.value for name in OptimizerNames)]
        if self.optim not in optimizers:
            raise MedtlError(f"Unknown --optim {self.optim!r}. {nearest(str(self.optim), optimizers)}")
        self.plain_adam = self.optim == "adam"  # which TrainingArguments does not know
        if self.plain_adam:
            self.optim = "adamw_torch"
        if self.plan.staged:  # DDP would wait for the gradients of what is frozen
            self.ddp_find_unused_parameters = True
        if self.greater_is_better is None and self.metric_for_best_model:
            self.greater_is_better = not self.metric_for_best_model.endswith(LOWER_IS_BETTER)
        self.dataloader_pin_memory &= torch.cuda.is_available()  # torch warns at each epoch otherwise
        super().__post_init__()
        self._set_processes()
        check_trackers(cast(list[str], self.report_to))
        self.run_name = self.run_name or Path(str(self.output_dir)).resolve().name
        if self.model_card and not Path(self.model_card).is_file():
            raise MedtlError(f"--model_card {self.model_card} is not a file. Give a Markdown file, or leave it out.")
        augment.augmentation(self.augmentation)  # fails here, not after the data are read
        for option, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < float("inf"):
                raise MedtlError(f"--{option} is the a of Beta(a, a), 0 or more (0.2 and 1 are usual), found {alpha}.")
        for option in ("external_labels", "external_sources"):
            if getattr(self, option) and not self.external_dataset:
                raise MedtlError(f"--{option} are those of --external_dataset, which is not given.")
        self.label_map  # noqa: B018 - of a wrong value
        check_steps(self.steps, self.fit, self.lung_model)
        check_postprocessing(self.postprocessing)
        self.mask_classes  # noqa: B018 - of a wrong value
        if not 0 <= self.head_dropout < 1:
            raise MedtlError(f"--head_dropout is a share of 0 or more and below 1, found {self.head_dropout}.")
        self._check_strategy()
        self._check_loss()
        self._check_folds()
        if self.hub_strategy != "end" and not self.push_to_hub:
            raise MedtlError(f"--hub_strategy {self.hub_strategy} says when to push. Give --push_to_hub, too.")
        self.refuse(
            ("hub_revision",), "finished runs go to the branch main, checkpoints to one of theirs. Leave it out."
        )
        if self.early_stopping_patience and not self.load_best_model_at_end:
            raise MedtlError("Early stopping needs --load_best_model_at_end true, or give --early_stopping_patience 0.")

    def _set_processes(self) -> None:
        if self.n_gpu > 1:  # DataParallel would multiply the batch, and is slower than a process for each
            logger.warning(
                "%d GPUs are here and one is used. For all: accelerate launch --multi_gpu RECIPE, "
                "or a file of recipes/accelerate/.",
                self.n_gpu,
            )
            self._n_gpu = 1
        self.undivided = self.per_device_train_batch_size, self.gradient_accumulation_steps  # of one process
        if self.world_size > 1 and self.auto_find_batch_size:
            raise MedtlError("--auto_find_batch_size is for one process. Give --per_device_train_batch_size.")
        if self.enable_jit_checkpoint:
            raise MedtlError("--enable_jit_checkpoint is not needed: SIGTERM writes a checkpoint anyway. Leave it out.")
        self.per_device_train_batch_size, self.gradient_accumulation_steps = divide(*self.undivided, self.world_size)

    def _check_strategy(self) -> None:
        for option, owners in OWNERS.items():
            if option in self._chosen and self.strategy not in owners:
                raise MedtlError(f"--{option} is for --strategy {' or '.join(owners)}, found {self.strategy}.")
        if self.from_scratch and self.strategy not in ("full", "differential"):
            raise MedtlError(f"--from_scratch would freeze random weights with --strategy {self.strategy}. Use full.")
        if self.feature_views < 1:
            raise MedtlError(f"--feature_views is 1 or more, found {self.feature_views}.")
        if self.max_steps > 0 and self.plan.staged:
            raise MedtlError(f"--strategy {self.strategy} counts epochs. Give --num_train_epochs, not --max_steps.")
        sharded = bool(self.fsdp or self.deepspeed or os.environ.get("ACCELERATE_USE_FSDP") == "true")
        if sharded and (self.strategy in ("lora", "progressive", "lp_ft") or self.ema_decay):
            raise MedtlError("FSDP and DeepSpeed work without --ema_decay, and not with lora, progressive and lp_ft.")

    def _check_loss(self) -> None:
        if self.loss not in LOSSES:
            raise MedtlError(f"--loss is one of {', '.join(LOSSES)}, found {self.loss!r}.")
        if self.class_weights not in CLASS_WEIGHTS:
            raise MedtlError(f"--class_weights is one of {', '.join(CLASS_WEIGHTS)}, found {self.class_weights!r}.")
        for option, value, below in (
            ("effective_beta", self.effective_beta, 1),
            ("focal_gamma", self.focal_gamma, float("inf")),
            ("ema_decay", self.ema_decay, 1),
            ("label_smoothing_factor", self.label_smoothing_factor, 1),
            ("lr_step_epochs", self.lr_step_epochs, self.num_train_epochs),
        ):
            if not 0 <= value < below:
                raise MedtlError(f"--{option} is 0 or more and below {below:g}, found {value:g}.")
        if not 0 < self.lr_step_factor <= 1:
            raise MedtlError(f"--lr_step_factor is above 0 and at most 1, found {self.lr_step_factor:g}.")

    def _check_folds(self) -> None:
        if self.fold is not None and not self.folds:
            raise MedtlError(f"--fold {self.fold} is one of --folds, which is not given. Give both, such as --folds 5.")
        if not 0 < self.train_fraction <= 1:
            raise MedtlError(f"--train_fraction is a share above 0 and at most 1, found {self.train_fraction:g}.")
        if self.splits and self.train_fraction < 1:
            raise MedtlError("--splits says which pictures are for training. Leave out --train_fraction, or give 1.")
        if not self.all_folds:
            return
        if self.splits:
            raise MedtlError("--splits is one split, and --folds without --fold makes several. Leave one of them out.")
        if self.push_to_hub:
            raise MedtlError(
                "--push_to_hub can't publish all folds: they are several models. Publish one of them (--fold), or an "
                "ensemble: leave out --push_to_hub, then see hf-medtl ensemble --help."
            )
        if str(self.resume_from_checkpoint).lower() not in ("none", "false", "no", "auto", "true", "last"):
            raise MedtlError(
                f"--resume_from_checkpoint {self.resume_from_checkpoint} is of one fold. With all folds: auto, each "
                "goes on from its own."
            )

    @property
    def all_folds(self) -> bool:
        """Whether each fold is to be the test split once."""
        return bool(self.folds) and self.fold is None

    def of_fold(self, fold: int) -> "Recipe":
        """The same for one fold, with a folder of its own; as --fold makes it, but without a second process group."""
        single = copy.copy(self)
        single.fold, single.output_dir = fold, str(Path(str(self.output_dir)) / f"fold-{fold}")
        single._chosen = {**self._chosen, "fold": fold}
        return single

    @property
    def plan(self) -> Strategy:
        """What trains when.

        Raises:
            MedtlError: options that can't work.
        """
        return Strategy(
            self.strategy,
            math.ceil(self.num_train_epochs),
            self.unfreeze_blocks,
            self.unfreeze_schedule,
            self.layer_decay,
            self.probe_epochs,
            self.lora_rank,
            self.lora_alpha,
        )

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps of `preprocessing`."""
        return words(self.preprocessing)

    @property
    def base_model(self) -> str:
        """The backbone's Hub id, or its folder's name: the folder's path says where the run was made."""
        return without_place(self.model_name_or_path)

    @property
    def mask_classes(self) -> dict[int, str] | None:
        """`mask_values` as grey value -> class; None where a mask is only inside and outside.

        Raises:
            MedtlError: no such pairs, or fewer than two classes.
        """
        if not self.mask_values:
            return None
        pairs = [pair.partition("=")[::2] for pair in self.mask_values.split(",")]
        found = {int(value): name.strip() for value, name in pairs if value.strip().isdecimal() and name.strip()}
        if len(found) < len(pairs) or max(found) > 255 or len({*found.values()}) < 2:
            raise MedtlError(
                "--mask_values are pairs of a grey value from 0 to 255 and a class, the background first, such as "
                f"0=background,128=lungs,255=heart; found {self.mask_values!r}."
            )
        return found

    @property
    def postprocessing(self) -> dict[str, Any]:
        """What is done to predicted masks, as config.json has it."""
        steps = {"largest_components": self.largest_components, "fill_holes": self.fill_holes}
        return {name: value for name, value in steps.items() if value}

    def refuse(self, options: Iterable[str], why: str) -> None:
        """Raise MedtlError if one of these options was given."""
        given = [f"--{option}" for option in options if option in self._chosen]
        if given:
            raise MedtlError(f"{', '.join(given)}: {why}")

    @property
    def label_map(self) -> dict[str, str]:
        """`external_labels` as a dict."""
        return label_pairs(self.external_labels, "--external_labels")

    def _set_precision(self, wish: str) -> None:
        if wish == "auto" and not (self.bf16 or self.fp16) and torch.cuda.is_available() and not self.use_cpu:
            wish = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        if wish in ("bf16", "fp16"):
            self.bf16, self.fp16 = wish == "bf16", wish == "fp16"

    @classmethod
    def from_cli(cls, defaults: dict[str, Any] | None = None, argv: Sequence[str] | None = None) -> "Recipe":
        """Recipe from a recipe file's dict < a YAML file given with --config < command-line flags.

        Raises:
            MedtlError: an unknown key or flag, with the nearest right one; a value of the wrong type.
        """
        values, given = read_options(cls, defaults, argv)
        recipe = cls(**values)
        recipe._named = given
        return recipe

    def variant(self, **changes: Any) -> "Recipe":
        """A recipe of its own with other values of some options.

        Raises:
            MedtlError: values that can't work.
        """
        places = {name: getattr(self, name) for name in (*PLACES, *MODELS)}
        other = Recipe(**self._chosen | places | changes)
        other._named = self._named | changes.keys()
        return other

    def to_dict(self) -> dict[str, Any]:
        """All options, as trackers get them: without tokens and places."""
        models = {name: its and without_place(its) for name in MODELS for its in [getattr(self, name)]}
        return {name: value for name, value in super().to_dict().items() if name not in PLACES} | models

    def to_yaml(self) -> str:
        """What was chosen, as YAML that `--config` reads; without tokens and places.

        What differs from the defaults, and what was set back to a default: the recipe's file may say otherwise.
        """
        usual = {f.name: default_of(f) for f in dataclasses.fields(self) if f.name in self._named - {*PLACES}}
        return yaml.safe_dump(usual | self._chosen, sort_keys=True, allow_unicode=True)


def label_pairs(text: str | None, option: str) -> dict[str, str]:
    """`a=b,c=d` as a dict.

    Raises:
        MedtlError: no such pairs.
    """
    pairs = [pair.split("=") for pair in (text or "").split(",") if pair]
    if any(len(pair) != 2 for pair in pairs):
        raise MedtlError(f"{option} are pairs such as a=b,c=d, found {text!r}.")
    return {theirs.strip(): ours.strip() for theirs, ours in pairs}


def words(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def without_place(name: str) -> str:
    """A folder's name, or the name of what is no folder."""
    return Path(name).resolve().name if Path(name).exists() else name


def default_of(f: dataclasses.Field) -> Any:
    """The value of an option that was not given."""
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
