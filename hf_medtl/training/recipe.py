"""Recipe: everything one run needs, flat."""

import copy
import dataclasses
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers.training_args import OptimizerNames

from hf_medtl.common.text import label_pairs, nearest, words
from hf_medtl.data import augmentation as augment
from hf_medtl.data.specs import DATASETS
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.postprocessing import check_postprocessing
from hf_medtl.models.build import is_ours
from hf_medtl.models.preprocessing import check_steps
from hf_medtl.models.strategies import Strategy
from hf_medtl.training.command_line import read_options
from hf_medtl.training.distributed import divide
from hf_medtl.training.losses import CLASS_WEIGHTS
from hf_medtl.training.options import LOSSES, Options
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


@dataclass
class Recipe(Options):
    """What to learn from what, and how: the fields of `Options` and every field of `transformers.TrainingArguments`.

    Raises:
        MedtlError: a value that can't work, with what would.
    """

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


def without_place(name: str) -> str:
    """A folder's name, or the name of what is no folder."""
    return Path(name).resolve().name if Path(name).exists() else name


def default_of(f: dataclasses.Field) -> Any:
    """The value of an option that was not given."""
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
