"""Recipe: the complete, flat configuration of one run."""

import copy
import dataclasses
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from hf_medtl.common.progress import shows_bars
from hf_medtl.common.text import parse_label_map, split_commas, suggest
from hf_medtl.data import augmentation as augment
from hf_medtl.data.columns import parse_columns
from hf_medtl.data.dataset import LoadedDataset
from hf_medtl.data.loading import load
from hf_medtl.data.specs import DATASETS
from hf_medtl.data.subset import subsample_training
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.matplotlib_backend import parse_formats
from hf_medtl.evaluation.postprocessing import check_postprocessing
from hf_medtl.models.build import is_custom_architecture
from hf_medtl.models.preprocessing import check_steps
from hf_medtl.models.strategies import Strategy
from hf_medtl.training.arguments import argument_errors, check_arguments, check_names
from hf_medtl.training.command_line import read_options
from hf_medtl.training.distributed import join_processes, split_evenly
from hf_medtl.training.image_sizes import ImageSizes
from hf_medtl.training.options import (
    FITTED_STRATEGIES,
    MODEL_OPTIONS,
    PATH_OPTIONS,
    PRIVATE_OPTIONS,
    STEP_OPTIONS,
    Options,
    Unchosen,
    check_choices,
    check_name_length,
    strip_path,
)
from hf_medtl.training.tracking import check_trackers

logger = logging.getLogger("hf_medtl")

# Option -> the strategies that use it.
STRATEGY_OPTIONS = {
    "unfreeze_blocks": ("last_n",),
    "unfreeze_schedule": ("progressive",),
    "layer_decay": ("differential",),
    "probe_epochs": ("lp_ft",),
    "lora_rank": ("lora",),
    "lora_alpha": ("lora",),
    "feature_views": ("feature_extraction", "lp_ft"),
}

# What runs without training steps have instead of the defaults.
WITHOUT_STEPS = {
    "augmentation": "none",
    "early_stopping_patience": 0,
    "load_best_model_at_end": False,
    "save_strategy": "no",
}

LOWER_IS_BETTER = ("loss", "brier", "ece", "hausdorff95")  # TrainingArguments knows this of losses only


@check_names
@dataclass
class Recipe(Options, TrainingArguments):
    """Configuration of a run: the fields of `Options` and every field of `transformers.TrainingArguments`.

    Raises:
        MedtlError: an invalid value; the message says what is valid.
    """

    def __post_init__(self) -> None:
        for option in (*PATH_OPTIONS, "dataset"):
            check_name_length(option, getattr(self, option))
        for option in PATH_OPTIONS:
            if str(getattr(self, option)).startswith("~"):  # shells leave it in --option=~/x, YAML and Python always
                setattr(self, option, str(Path(getattr(self, option)).expanduser()))
        if isinstance(self.dataset, Unchosen) and self.data_dir:  # as hf-medtl train --data_dir
            self.dataset = "table" if Path(self.data_dir).is_file() else "imagefolder"
        self.dataset = str(self.dataset)
        if str(self.image_size).isdecimal():
            self.image_size = int(str(self.image_size))
        # Before values are resolved for this machine. Comparing with a second Recipe would reset the process group.
        self._chosen = {
            f.name: value
            for f in dataclasses.fields(self)
            for value, default in [(getattr(self, f.name), default_value(f))]
            if f.name not in PRIVATE_OPTIONS and value != default
            if value or type(value) is int or default not in (None, "", "no", False)  # 0 is a value, False is not
        }
        for option in MODEL_OPTIONS:
            if option in self._chosen:
                self._chosen[option] = strip_path(getattr(self, option))
        self._chosen["dataset"] = self.dataset  # also the default, which holds only without data_dir
        if isinstance(self._chosen.get("debug"), list):  # YAML has no enums
            self._chosen["debug"] = " ".join(option.value for option in self._chosen["debug"])
        self._named: set[str] = set()
        self.left_out: dict[str, Any] = {}  # of the recipe file, which is for another data set
        if self.strategy in FITTED_STRATEGIES:
            self.refuse(
                STEP_OPTIONS,
                f"--strategy {self.strategy} has no training steps: a classifier is fitted on features of the images "
                "as they are, computed once. Remove the option, or train the head with --strategy feature_extraction.",
            )
            if self.strategy == "knn":
                publishing = ("push_to_hub", "hub_model_id", "hub_private_repo")
                self.refuse(publishing, "--strategy knn only measures, so there is no model to publish.")
            vars(self).update(WITHOUT_STEPS)
        self.task = self.task or DATASETS.get(self.dataset, DATASETS["imagefolder"]).task
        check_choices(vars(self))
        check_arguments(self)
        self.from_scratch |= is_custom_architecture(self.model_name_or_path)
        self._set_precision(self.mixed_precision)
        if self.hub_token:  # in the environment it cannot be saved with the arguments
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        self.split_seed = self.seed if self.split_seed is None else self.split_seed
        self.label_names = ["labels"]
        optimizers = ["adam", *(name.value for name in OptimizerNames)]
        if self.optim not in optimizers:
            raise MedtlError(f"Unknown --optim {self.optim!r}. {suggest(str(self.optim), optimizers)}")
        self.plain_adam = self.optim == "adam"  # TrainingArguments does not know it
        if self.plain_adam:
            self.optim = "adamw_torch"
        if self.disable_tqdm is None:
            self.disable_tqdm = not shows_bars()
        if self.plan.staged:  # DDP would wait for gradients of frozen parameters
            self.ddp_find_unused_parameters = True
        if self.greater_is_better is None and self.metric_for_best_model:
            self.greater_is_better = not self.metric_for_best_model.endswith(LOWER_IS_BETTER)
        self.dataloader_pin_memory &= torch.cuda.is_available()  # torch would warn at each epoch
        own = {f.name for f in dataclasses.fields(Options)}
        with argument_errors({name: value for name, value in self._chosen.items() if name not in own}):
            join_processes(self.use_cpu, self.ddp_backend, self.ddp_timeout)
            super().__post_init__()
        self._set_processes()
        check_trackers(cast(list[str], self.report_to))
        self.run_name = self.run_name or Path(str(self.output_dir)).resolve().name
        if self.model_card and not Path(self.model_card).is_file():
            raise MedtlError(
                f"--model_card {self.model_card} is not a file. Pass a Markdown file, or remove the option."
            )
        parse_formats(self.figures)
        augment.get_augmentation(self.augmentation)  # fails before the data are read
        for option, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < float("inf"):
                raise MedtlError(
                    f"--{option} is the alpha of Beta(alpha, alpha), at least 0 (typically 0.2 or 1), but is {alpha}."
                )
        for option in ("external_columns", "external_labels", "external_sources"):
            if getattr(self, option) and not self.external_dataset:
                raise MedtlError(f"--{option} needs --external_dataset.")
        self.label_map  # noqa: B018 - raises for an invalid value
        parse_columns(self.columns)
        parse_columns(self.external_columns, "--external_columns")
        check_steps(self.steps, self.fit, self.lung_model)
        self.sizes  # noqa: B018 - raises for an invalid value
        check_postprocessing(self.postprocessing)
        self.mask_classes  # noqa: B018 - raises for an invalid value
        self._check_values()
        self._check_strategy()
        self._check_folds()
        if self.hub_strategy != "end" and not self.push_to_hub:
            raise MedtlError(
                f"--hub_strategy {self.hub_strategy} has no effect without --push_to_hub. Add --push_to_hub."
            )
        self.refuse(
            ("hub_revision",), "finished runs go to the branch main, checkpoints to their own. Remove the option."
        )
        if self.early_stopping_patience and not self.load_best_model_at_end:
            raise MedtlError(
                "Early stopping needs --load_best_model_at_end true. Set it, or disable early stopping with "
                "--early_stopping_patience 0."
            )

    def _set_processes(self) -> None:
        if self.n_gpu > 1:  # DataParallel would multiply the batch, and is slower than one process per GPU
            logger.warning(
                "Only one of %d GPUs is used. To use all of them: accelerate launch --multi_gpu RECIPE, "
                "or a configuration from recipes/accelerate/.",
                self.n_gpu,
            )
            self._n_gpu = 1
        self.undivided = self.per_device_train_batch_size, self.gradient_accumulation_steps  # for a single process
        if self.world_size > 1 and self.auto_find_batch_size:
            raise MedtlError("--auto_find_batch_size only works with one process. Set --per_device_train_batch_size.")
        if self.enable_jit_checkpoint:
            raise MedtlError(
                "--enable_jit_checkpoint is not needed: SIGTERM always writes a checkpoint. Remove the option."
            )
        self.per_device_train_batch_size, self.gradient_accumulation_steps = split_evenly(
            *self.undivided, self.world_size
        )

    def _check_strategy(self) -> None:
        for option, owners in STRATEGY_OPTIONS.items():
            if option in self._chosen and self.strategy not in owners:
                raise MedtlError(f"--{option} is for --strategy {' or '.join(owners)}, not {self.strategy}.")
        if self.strategy in FITTED_STRATEGIES and self.sizes.stages:
            raise MedtlError(
                f"--image_size {self.image_size} counts epochs, and --strategy {self.strategy} has none. Give the last "
                f"size alone: --image_size {self.sizes.last}."
            )
        if self.from_scratch and self.strategy not in ("full", "differential"):
            raise MedtlError(
                f"--strategy {self.strategy} would freeze the random weights of --from_scratch. Use --strategy full."
            )
        if self.feature_views < 1:
            raise MedtlError(f"--feature_views must be at least 1, but is {self.feature_views}.")
        if self.max_steps > 0 and self.plan.staged:
            raise MedtlError(
                f"--strategy {self.strategy} counts epochs. Set --num_train_epochs instead of --max_steps."
            )
        if self.fsdp and self.world_size == 1:
            raise MedtlError("--fsdp shards the model over several processes, and there is one. Remove the option.")
        sharded = bool(self.fsdp or self.deepspeed or os.environ.get("ACCELERATE_USE_FSDP") == "true")
        if sharded and (self.strategy in ("lora", "progressive", "lp_ft", *FITTED_STRATEGIES) or self.ema_decay):
            raise MedtlError(
                "FSDP and DeepSpeed cannot be combined with --ema_decay or with --strategy lora, progressive, lp_ft, "
                "linear_probe or knn."
            )

    def _check_values(self) -> None:
        for option, limit in (
            ("head_dropout", 1),
            ("effective_beta", 1),
            ("focal_gamma", float("inf")),
            ("ema_decay", 1),
            ("label_smoothing_factor", 1),
            ("lr_step_epochs", self.num_train_epochs),
        ):
            value = getattr(self, option)
            if not 0 <= value < limit:
                raise MedtlError(f"--{option} must be at least 0 and below {limit:g}, but is {value:g}.")
        for option in ("validation_fraction", "test_fraction"):
            value = getattr(self, option)
            if not 0 <= value < 1:
                raise MedtlError(f"--{option} must be at least 0 and below 1, but is {value:g}.")
        if not 0 <= self.oversampling <= 1:
            raise MedtlError(f"--oversampling must be from 0 to 1, but is {self.oversampling:g}.")
        if self.oversampling and self.class_weights != "none":
            raise MedtlError(
                "--oversampling and --class_weights both make up for rare classes, and together would do so twice. Use "
                "one of them."
            )
        for option in ("lr_step_factor", "train_fraction"):
            value = getattr(self, option)
            if not 0 < value <= 1:
                raise MedtlError(f"--{option} must be above 0 and at most 1, but is {value:g}.")

    def _check_folds(self) -> None:
        if self.folds == 1:
            raise MedtlError("--folds must be at least 2, or 0 for a single split, but is 1.")
        if self.fold is not None and 0 < self.folds <= self.fold:
            raise MedtlError(
                f"--fold must be from 0 to {self.folds - 1} with --folds {self.folds}, but is {self.fold}."
            )
        if self.fold is not None and not self.folds:
            raise MedtlError(f"--fold {self.fold} needs the number of folds. Add --folds, such as --folds 5.")
        if self.splits and self.train_fraction < 1:
            raise MedtlError("--splits already defines the training images. Remove --train_fraction, or set it to 1.")
        if not self.all_folds:
            return
        if self.splits:
            raise MedtlError(
                "--splits is a single split, but --folds without --fold makes one per fold. Remove one of them."
            )
        if self.push_to_hub:
            raise MedtlError(
                "--push_to_hub cannot publish all folds, because each is a separate model. Publish one (--fold), or an "
                "ensemble: remove --push_to_hub, then see hf-medtl ensemble --help."
            )
        if str(self.resume_from_checkpoint).lower() not in ("none", "false", "no", "auto", "true", "last"):
            raise MedtlError(
                f"--resume_from_checkpoint {self.resume_from_checkpoint} belongs to one fold. Use auto: each fold "
                "resumes from its own checkpoint."
            )

    @property
    def sizes(self) -> ImageSizes:
        """Sizes of the images by epoch."""
        return ImageSizes.parse(self.image_size, self.num_train_epochs)

    @property
    def all_folds(self) -> bool:
        """True if every fold is to be the test split in turn."""
        return bool(self.folds) and self.fold is None

    def of_fold(self, fold: int) -> "Recipe":
        """Return the recipe of one fold with its own folder, as --fold makes it, without a second process group."""
        single = copy.copy(self)
        single.fold, single.output_dir = fold, str(Path(str(self.output_dir)) / f"fold-{fold}")
        single._chosen = {**self._chosen, "fold": fold}
        return single

    @property
    def plan(self) -> Strategy:
        """The fine-tuning strategy.

        Raises:
            MedtlError: invalid options.
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
        """The preprocessing steps."""
        return split_commas(self.preprocessing)

    @property
    def base_model(self) -> str:
        """Hub id of the backbone, or the name of its folder without the machine-specific path."""
        return strip_path(self.model_name_or_path)

    @property
    def mask_classes(self) -> dict[int, str] | None:
        """`mask_values` as gray value -> class; None for binary masks.

        Raises:
            MedtlError: malformed pairs, or fewer than two classes.
        """
        if not self.mask_values:
            return None
        pairs = [pair.partition("=")[::2] for pair in self.mask_values.split(",")]
        classes = {int(value): name.strip() for value, name in pairs if value.strip().isdecimal() and name.strip()}
        if len(classes) < len(pairs) or max(classes) > 255 or len({*classes.values()}) < 2:
            raise MedtlError(
                "--mask_values must be pairs of a gray value from 0 to 255 and a class, background first, such as "
                f"0=background,128=lungs,255=heart, but is {self.mask_values!r}."
            )
        return classes

    @property
    def postprocessing(self) -> dict[str, Any]:
        """Postprocessing of predicted masks, as stored in config.json."""
        steps = {"largest_components": self.largest_components, "fill_holes": self.fill_holes}
        return {name: value for name, value in steps.items() if value}

    def refuse(self, options: Iterable[str], why: str) -> None:
        """Raise MedtlError with the reason `why` if one of these options was given."""
        given = [f"--{option}" for option in options if option in self._chosen]
        if given:
            raise MedtlError(f"{', '.join(given)}: {why}")

    @property
    def label_map(self) -> dict[str, str]:
        """`external_labels` as a dict."""
        return parse_label_map(self.external_labels, "--external_labels")

    def load_data(self) -> LoadedDataset:
        """Load and split the dataset; errors as in `load` and `subsample_training`."""
        loaded = load(
            self.dataset,
            self.data_dir,
            official_split=self.official_split,
            validation_fraction=self.validation_fraction,
            test_fraction=self.test_fraction,
            seed=int(self.split_seed or 0),
            folds=self.folds,
            fold=self.fold or 0,
            splits=self.splits,
            positive=self.positive_label,
            task=self.task,
            sources=split_commas(self.sources),
            columns=parse_columns(self.columns),
        )
        if self.train_fraction == 1:
            return loaded
        return subsample_training(loaded, self.train_fraction, int(self.split_seed or 0))

    def _set_precision(self, precision: str) -> None:
        if precision == "auto" and not (self.bf16 or self.fp16) and torch.cuda.is_available() and not self.use_cpu:
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        if precision in ("bf16", "fp16"):
            self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        if self.use_cpu or not torch.accelerator.is_available():
            if self.fp16 or self.fp16_full_eval or os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16":
                raise MedtlError("--mixed_precision fp16 needs an accelerator; on the CPU, use bf16 or no.")
            self.use_cpu |= self.bf16 or self.bf16_full_eval  # else transformers looks for a GPU with bf16
            able = torch.cpu.get_capabilities()
            if self.bf16 and able.get("architecture") == "x86_64" and not (able["avx512_bf16"] or able["amx_bf16"]):
                logger.warning(
                    "This CPU has no instructions for bfloat16: each step takes many times as long. Leave out "
                    "--mixed_precision bf16, or use another machine."
                )

    @classmethod
    def from_cli(cls, defaults: Mapping[str, Any] | None = None, argv: Sequence[str] | None = None) -> "Recipe":
        """Make a recipe from defaults, a YAML file (--config) and command-line flags, the later ones taking precedence.

        Defaults for the images of one data set (`DATASET_OPTIONS`) are left out with another --dataset.

        Raises:
            MedtlError: an unknown key or flag, with the closest valid one; a value of the wrong type.
        """
        values, given, left_out = read_options(defaults, argv)
        if values["config"]:  # recipe.yaml of older runs leaves out the default
            values["dataset"] = str(values["dataset"])
        recipe = cls(**values)
        recipe._named, recipe.left_out = given, left_out
        return recipe

    def choose(self, **values: str) -> None:
        """Set options that the user chose after the start, so that recipe.yaml has them.

        Args:
            values: option -> value.
        """
        vars(self).update(values)
        self._chosen |= values

    def variant(self, **changes: Any) -> "Recipe":
        """Return a new recipe with changed options, without those that a changed strategy does not use.

        Raises:
            MedtlError: invalid values.
        """
        paths = {name: getattr(self, name) for name in (*PRIVATE_OPTIONS, *MODEL_OPTIONS)}
        strategy = changes.get("strategy", self.strategy)
        unused = {name for name in {*self._chosen, *self._named} - {*changes} if not uses_option(strategy, name)}
        chosen = {name: value for name, value in self._chosen.items() if name not in unused}
        other = Recipe(**chosen | paths | changes)
        other._named, other.left_out = (self._named | changes.keys()) - unused, self.left_out
        return other

    def to_dict(self) -> dict[str, Any]:
        """Return all options for trackers, without tokens and paths."""
        models = {name: value and strip_path(value) for name in MODEL_OPTIONS for value in [getattr(self, name)]}
        return {name: value for name, value in super().to_dict().items() if name not in PRIVATE_OPTIONS} | models

    def to_yaml(self) -> str:
        """Return the chosen options as YAML for `--config`, without tokens and paths.

        These are options that differ from the defaults, or that were set back to a default of this class: the recipe's
        file may have another.
        """
        reset = {
            f.name: default_value(f) for f in dataclasses.fields(self) if f.name in self._named - {*PRIVATE_OPTIONS}
        }
        return yaml.safe_dump(reset | self._chosen, sort_keys=True, allow_unicode=True)


def uses_option(strategy: str, option: str) -> bool:
    """Return True if an option belongs to a strategy, or to all."""
    if option in STEP_OPTIONS and strategy in FITTED_STRATEGIES:
        return False
    return option not in STRATEGY_OPTIONS or strategy in STRATEGY_OPTIONS[option]


def default_value(f: dataclasses.Field) -> Any:
    """Return the default of a dataclass field."""
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
