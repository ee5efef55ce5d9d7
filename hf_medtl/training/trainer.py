"""Trainer subclass: strategies, EMA, cached features, exact resume."""

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)

from hf_medtl.data.prepared import PreparedImages
from hf_medtl.errors import MedtlError
from hf_medtl.models.device import memory_format
from hf_medtl.models.heads import find_head, is_segmenter
from hf_medtl.models.image_size import size_arguments
from hf_medtl.models.preprocessing import normalisation
from hf_medtl.models.strategies import (
    add_lora,
    count_blocks,
    describe_trainable,
    eval_frozen_modules,
    head_names,
    parameter_depths,
    remove_lora,
    set_trainable,
)
from hf_medtl.training import features
from hf_medtl.training.callbacks import Progress, StrategyCallback
from hf_medtl.training.checkpoints import find_changes, write_checksums
from hf_medtl.training.distributed import PADDING_EXAMPLE, keep_workers, shard_batches
from hf_medtl.training.divergence import DivergenceCheck
from hf_medtl.training.ema import Ema
from hf_medtl.training.epoch_log import BarCallback, EpochLog
from hf_medtl.training.linear_probe import LinearProbe, fit_linear_probe
from hf_medtl.training.mixing import mix_batch
from hf_medtl.training.nearest_neighbours import NearestNeighbours
from hf_medtl.training.recipe import Recipe
from hf_medtl.training.tiles import join_tiles

logger = logging.getLogger("hf_medtl")

# Files for resuming that differ from the published weights: LoRA adapters, raw weights beside the EMA.
RAW_WEIGHTS, EMA_WEIGHTS = "training_weights.safetensors", "average_weights.safetensors"


class MedicalTrainer(Trainer):
    """`transformers.Trainer` on uint8 images that restores every tensor and saves no pickled arguments.

    Args:
        recipe: configuration of the run.
        model: model to train.
        processor: its image processor, for mean and standard deviation, saved with checkpoints.
        train: prepared and augmented training images.
        validation: prepared validation images.
        loss: function of logits, targets and the number of targets.
        metrics: metrics of each evaluation, by name.
        reduce: reduces a batch's logits and targets to what `metrics` needs, to save memory.
        groups: (n,) group of each training image, for cross-validation of a strategy that is fitted.

    Attributes:
        features: train and validation -> features (n, d), of a strategy that is fitted.
        fitted: what it fitted.
    """

    args: Recipe
    model: PreTrainedModel

    def __init__(
        self,
        recipe: Recipe,
        model: PreTrainedModel,
        processor: Any,
        train: PreparedImages,
        validation: PreparedImages,
        loss: Callable[..., torch.Tensor],
        metrics: Callable[[EvalPrediction], dict[str, float]],
        reduce: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
        groups: Sequence[str] = (),
    ) -> None:
        self.strategy = recipe.plan
        self.strategy.check(model)
        self.depths = parameter_depths(model) if self.strategy.by_blocks else None
        self.blocks = count_blocks(self.depths) if self.depths else 0
        self.trained: int | None = None  # number of blocks that are trained now; None before training
        self.lora: Any = None
        self.ema: Ema | None = None
        self.checkpoint: str | None = None  # to resume from
        self.changed_at = 0  # step of a checkpoint from which training goes on with another loss, data or metric
        self.undo_features: Callable[[], None] | None = None
        # Mark every parameter that will be trained at any stage as requiring grad now, for the optimizer and DDP.
        set_trainable(model, self.strategy.trainable_blocks(self.strategy.epochs, self.blocks), self.depths)
        if self.strategy.name == "lora":
            self.lora = add_lora(model, self.strategy.lora_rank, self.strategy.lora_alpha)
        self.reduce = reduce
        self.size: int | None = None  # of training images in this epoch, where it is not that of the model
        self.size_arguments = size_arguments(model) if recipe.sizes.stages else {}
        self.divergence = DivergenceCheck(recipe)
        self.groups, self.class_weights = groups, getattr(loss, "weights", None)
        self.features: dict[str, torch.Tensor] = {}
        self.fitted: LinearProbe | NearestNeighbours | None = None
        self.sets: list[features.FeatureSet] = []
        can_cache = recipe.cache_features and not is_segmenter(model)
        can_cache &= not (self.strategy.is_fitted or recipe.mixup or recipe.cutmix)
        if can_cache and self.strategy.head_only(0):
            self.sets = [features.FeatureSet(data, recipe.feature_views) for data in (train, validation)]
        callbacks: list[TrainerCallback] = [Progress(), StrategyCallback(self), EpochLog()]
        if recipe.early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
        super().__init__(
            model=model,
            args=recipe,
            processing_class=processor,
            compute_metrics=metrics if validation.images is None else join_tiles(metrics, validation.images),
            callbacks=callbacks,
            train_dataset=self.sets[0] if self.sets else train,
            eval_dataset=self.sets[1] if self.sets else validation,
            # One loss for all model families, and for heads on features, which the model's own forward does not see.
            compute_loss_func=lambda outputs, labels, num_items_in_batch=None: loss(
                outputs["logits"], labels, num_items_in_batch
            ),
        )
        self.pop_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback):
            self.add_callback(BarCallback)
        self.mean, self.std = (value.to(self.args.device) for value in normalisation(processor))
        self.mix_step = (-1, 0)  # optimizer step, and index of the batch in it, to seed mixup and CutMix

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `run` creates the repository. Trainer would push unfinished, untested files."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: `publish.checkpoints` pushes checkpoints."""

    @property
    def progress(self) -> Progress:
        """The active `Progress` callback: resuming replaces the original one."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Progress))

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer.get_train_dataloader`, but shards each optimizer step's images over the processes."""
        loader = super().get_train_dataloader()
        if self.args.world_size == 1:
            return loader
        drop_last, rank = self.args.dataloader_drop_last, self.args.process_index
        return shard_batches(loader, *self.args.undivided, drop_last, rank, self.args.world_size)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        return keep_workers(super()._get_dataloader(*args, **kwargs))

    def _get_num_items_in_batch(self, batches: list[dict[str, Any]], device: torch.device) -> Any:
        return super()._get_num_items_in_batch(
            [b | {"labels": torch.full_like(b["labels"], -100)} if PADDING_EXAMPLE in b else b for b in batches], device
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # uint8 travels to the device, a quarter of the bytes, and is normalised there. In place: allocating the batch
        # again takes longer than the arithmetic.
        inputs = super()._prepare_inputs(inputs)
        if "features" in inputs:
            return inputs
        pixels = inputs["pixel_values"]
        pixels = pixels.to(dtype=torch.float32, memory_format=memory_format(pixels.device))
        if self.model.training and self.size:
            pixels = nn.functional.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
            inputs |= self.size_arguments
        inputs["pixel_values"] = pixels.sub_(self.mean).div_(self.std)
        if self.model.training and (self.args.mixup or self.args.cutmix):
            step = self.state.global_step
            self.mix_step = (step, self.mix_step[1] + 1 if self.mix_step[0] == step else 0)
            # Seeded by the position in training alone: a resumed run draws the same numbers, each process its own.
            rng = np.random.default_rng([self.args.seed, *self.mix_step, self.args.process_index])
            labels = inputs["labels"]
            if labels.ndim == 1:  # class indices
                labels = nn.functional.one_hot(labels, cast(int, self.model.config.num_labels)).float()
            mixed = mix_batch(inputs["pixel_values"], labels, self.args.mixup, self.args.cutmix, rng)
            inputs["pixel_values"], inputs["labels"] = mixed
        return inputs

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.compute_loss`, but keeps frozen modules in eval mode and zeroes the loss of padding examples."""
        if model.training and self.strategy.name not in ("full", "differential"):
            eval_frozen_modules(self.model)
        padding = inputs.pop(PADDING_EXAMPLE, None)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss if padding is None else loss * 0  # zero gradients, because DDP waits for some

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `Trainer.training_step`; raise MedtlError if the loss is not finite, before the weights are changed."""
        loss = super().training_step(*args, **kwargs)
        self.divergence.check_loss(loss, "training", self.state, self._get_learning_rate())
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer of --optim, with separate learning rates for the head and the strategy's blocks."""
        if self.optimizer is not None:
            return self.optimizer
        if self.args.head_learning_rate is None and self.strategy.name == "full":
            optimizer = super().create_optimizer(model)
            for group in optimizer.param_groups:
                group.update(name="all", peak=self.args.learning_rate)
            return optimizer
        model = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(model))
        head = head_names(self.model)
        groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = (*self._group(name.removeprefix("module."), head), name in decayed)
                groups.setdefault(key, []).append(parameter)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "lr": rate,
                    "weight_decay": self.args.weight_decay if is_decayed else 0.0,
                    "name": group,
                    "peak": rate,
                }
                for (group, rate, is_decayed), parameters in groups.items()
            ],
            **options,
        )
        return cast(torch.optim.Optimizer, self.optimizer)

    def _group(self, name: str, head: set[str]) -> tuple[str, float]:
        """Return the name of a parameter's group and its learning rate."""
        rate = self.args.learning_rate
        if name in head:
            return "head", rate if self.args.head_learning_rate is None else self.args.head_learning_rate
        if self.depths is None:
            return "adapters" if self.lora else "body", rate
        depth = self.depths[name]
        group = "before the blocks" if depth == 0 else "after the blocks" if depth > self.blocks else f"block {depth}"
        if self.strategy.name == "differential":
            rate *= self.strategy.layer_decay ** (self.blocks + 1 - depth)
        return group, rate

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: PreTrainedModel | None = None) -> tuple[Any, Any]:
        """As `Trainer.get_optimizer_cls_and_kwargs`, plus Adam, which has L2 regularization instead of weight decay."""
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return (torch.optim.Adam, options) if args.plain_adam else (optimizer, options)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule of --lr_scheduler_type, or a step schedule with --lr_step_epochs."""
        if self.lr_scheduler is not None or not self.args.lr_step_epochs:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        length = num_training_steps * self.args.lr_step_epochs / self.args.num_train_epochs

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / (warmup + 1)) * self.args.lr_step_factor ** int(step / length + 1e-9)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(cast(Any, optimizer or self.optimizer), factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def start_ema(self) -> None:
        """Start the moving average of --ema_decay at the current weights, or restore it from the checkpoint."""
        if not self.args.ema_decay:
            return
        self.ema = Ema(self.model, self.args.ema_decay)
        if self.checkpoint:
            ema_file = Path(self.checkpoint) / EMA_WEIGHTS
            if not ema_file.exists():
                raise MedtlError(f"{self.checkpoint} was made without --ema_decay. Resume without it, too.")
            for name, tensor in load_file(ema_file).items():
                self.ema.average[name].copy_(tensor)

    def apply_epoch_strategy(self, epoch: int) -> None:
        """Freeze and unfreeze parameters, and set the size of images, or features instead of them, for this epoch."""
        self.size = self.args.sizes.at(epoch)
        number = self.strategy.trainable_blocks(epoch, self.blocks)
        for data in self.sets:
            data.in_use.fill_(self.strategy.head_only(epoch))
        if number == self.trained:
            return
        self.trained = number
        if self.lora is None:
            set_trainable(self.model, number, self.depths)
        for line in describe_trainable(self.model, cast(Any, self.optimizer).param_groups):
            logger.info("Epoch %d: %s", epoch, line)
        if self.sets and self.strategy.head_only(epoch):
            self._compute_features()

    def _compute_features(self) -> None:
        started = time.monotonic()
        # The random state of training must not change here.
        with torch.random.fork_rng(devices=[self.args.device] if self.args.device.type == "cuda" else []):
            batch = torch.utils.data.default_collate([self.sets[1].images[0]] * 2)
            self.model.eval()
            rate = features.dropout_before_head(self.model, self._prepare_inputs(batch)["pixel_values"])
            if rate is None:
                logger.warning("The head's input cannot be cached for this model; every epoch runs the body.")
                for data in self.sets:
                    data.in_use.fill_(False)
                self.sets = []
                return
            for data in self.sets:
                features.compute_features(data, self.model, self._prepare_inputs, self.args)
        self.undo_features = features.add_features_input(self.model, rate)
        logger.info(
            "Computed the features of %d training images (%d view(s) each) and %d validation images in %.1f s",
            len(self.sets[0]), self.sets[0].views, len(self.sets[1]), time.monotonic() - started,
        )  # fmt: skip

    def head_inputs(self, images: PreparedImages) -> torch.Tensor:
        """Return the features (n, d) before the head of images without augmentation, in every process."""
        plain = copy.copy(images)
        plain.augment = None
        data = features.FeatureSet(plain, views=1)
        stage = "Computing features" + " for out-of-distribution detection" * (not self.strategy.is_fitted)
        # Training has wrapped the model's forward in the context of --mixed_precision; without steps nothing has.
        with self.accelerator.autocast() if self.strategy.is_fitted else contextlib.nullcontext():
            features.compute_features(data, self.model, self._prepare_inputs, self.args, stage)
        return cast(torch.Tensor, data.values)[0]

    def _fit(self) -> None:
        """Fit the classifier of the strategy on features of the training images, and measure it on validation."""
        progress = self.progress
        progress.started = time.monotonic()
        images = {"train": self.train_dataset, "validation": self.eval_dataset}
        batch = torch.utils.data.default_collate([cast(Any, self.eval_dataset)[0]])
        features.check_pooled(self.model, self._prepare_inputs(batch)["pixel_values"])
        self.features = {split: self.head_inputs(cast(PreparedImages, data)) for split, data in images.items()}
        computed = progress.total_seconds()
        if not all(torch.isfinite(values).all() for values in self.features.values()):
            raise MedtlError(
                "The features of some images are not finite, so nothing can be fitted on them. Use --mixed_precision "
                "no, or another encoder."
            )
        targets = {split: np.asarray(cast(PreparedImages, data).labels) for split, data in images.items()}
        weights = None if self.class_weights is None else self.class_weights.tolist()
        head = find_head(self.model)
        number = head.out_features
        if self.strategy.name == "knn":
            self.fitted = NearestNeighbours(self.features["train"], targets["train"], self.groups, number, weights)
            logits = self.fitted.logits(self.features["validation"])
        else:
            values = self.features["train"].numpy()
            seed = self.args.seed
            self.fitted = fit_linear_probe(values, targets["train"], self.groups, weights, seed, number)
            with torch.no_grad():
                for parameter, fitted in ((head.weight, self.fitted.weight), (head.bias, self.fitted.bias)):
                    parameter.copy_(torch.from_numpy(fitted))
            logits = self.fitted.logits(self.features["validation"].numpy())
        progress.seconds, progress.started = progress.total_seconds(), None
        logger.info(
            "Computed the features of %d images in %.1f s, and fitted on %d of them in %.1f s",
            sum(map(len, targets.values())), computed, len(self.groups), progress.seconds - computed,
        )  # fmt: skip
        self._measure_fitted(logits, targets["validation"])

    def _measure_fitted(self, logits: NDArray[np.float64], targets: NDArray[Any]) -> None:
        """Log the metrics of the validation split, and report them to the callbacks, as an evaluation does."""
        loss = cast(Any, self.compute_loss_func)({"logits": torch.from_numpy(logits)}, torch.from_numpy(targets))
        measured = cast(Any, self.compute_metrics)(EvalPrediction(logits, targets))
        metrics = {"eval_loss": float(loss), **{f"eval_{name}": value for name, value in measured.items()}}
        self.state.best_metric = metrics.get(f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}")
        shown = ("loss", "roc_auc", "balanced_accuracy")
        values = ", ".join(f"{name} {metrics[f'eval_{name}']:.3f}" for name in shown if f"eval_{name}" in metrics)
        logger.info("Validation: %s", values)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.control.should_training_stop:  # training had already ended before it was resumed
            super()._run_epoch(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; then turns the model into the published one: EMA weights, LoRA merged, no features."""
        if self.strategy.is_fitted:
            return self._fit()
        try:
            result = super().train(*args, **kwargs)
        finally:
            self.progress.restore_handlers()  # after an error, too: a notebook goes on
        self._make_plain()
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled or self.progress.interrupted):
            self.divergence.check_weights(self.model)
        return result

    def _make_plain(self, weights_follow: bool = False) -> None:
        if self.ema and not weights_follow:
            self.ema.swap()
        if self.lora:
            remove_lora(self.lora, merge=not weights_follow)
        self.ema = self.lora = None
        if self.undo_features:
            self.undo_features()
            self.undo_features = None
        for data in self.sets:
            data.in_use.fill_(False)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`, with the EMA weights if there are any."""
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            return super().evaluate(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.prediction_step`, but reduces logits and targets: whole masks would fill the memory."""
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        state = self.accelerator.gradient_state
        if self.args.world_size > 1 and state.end_of_dataloader and state.remainder > 0 and logits is not None:
            # Trainer excludes the duplicates that fill the last batch from the metrics, but not from the loss.
            size = len(cast(torch.Tensor, labels))
            own = slice(min(max(state.remainder - self.args.process_index * size, 0), size) or size)
            loss = cast(Any, self.compute_loss_func)({"logits": logits[own]}, cast(torch.Tensor, labels)[own])
        if self.is_in_train and loss is not None:
            self.divergence.check_loss(loss, "validation", self.state, self._get_learning_rate())
        if self.reduce and logits is not None:
            logits, labels = self.reduce(logits, cast(torch.Tensor, labels))
        return loss, logits, labels

    # Checkpoints have the Hub's tensor names, which plain load_state_dict half ignores without an error (transformers
    # issue #48805). Both overrides can go when its fix, PR #48822, is in the oldest version that we support.
    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not self.state.best_model_checkpoint:
            return super()._load_best_model()
        best = Path(self.state.best_model_checkpoint)
        if damage := find_changes(best):
            raise MedtlError(
                f"The best checkpoint, {best}, cannot be used: {damage}. Give the same command with "
                "--resume_from_checkpoint auto: the best of the other checkpoints is used then."
            )
        self._make_plain(weights_follow=True)
        self._restore(self.model, str(best))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        model, self.checkpoint = self.model if model is None else model, resume_from_checkpoint
        live = Path(resume_from_checkpoint) / RAW_WEIGHTS
        if live.exists():
            model.load_state_dict(load_file(live), strict=True)
        else:
            self._restore(model, resume_from_checkpoint)

    def _restore(self, model: nn.Module, folder: str) -> None:
        saved = type(self.model).from_pretrained(folder, dtype=self.model.dtype)
        model.load_state_dict(saved.state_dict(), strict=True)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save and (self.ema or self.lora):
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: t.clone() for name, t in self.model.state_dict().items()}, folder / RAW_WEIGHTS)
            if self.ema:
                save_file(self.ema.average, folder / EMA_WEIGHTS)
        with self._published():
            super()._save(output_dir, state_dict)
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.yaml has everything

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # trainer_state.json, written next, marks the checkpoint as complete; the main process then deletes old ones.
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        folder = self._checkpoint_folder(self.state.global_step)
        if self.args.should_save and folder.is_dir():
            write_checksums(folder)

    def _checkpoint_folder(self, step: int) -> Path:
        return Path(self._get_output_dir(trial=None)) / f"checkpoint-{step}"

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """As `Trainer._init_training_state`, but checks the best checkpoint of a resumed run."""
        result = super()._init_training_state(*args, **kwargs)
        step = self.state.best_global_step or 0
        if step and (self.args.load_best_model_at_end or step <= self.changed_at):
            # Trainer forgets the path if the run folder was moved.
            best = Path(self.state.best_model_checkpoint or self._checkpoint_folder(step))
            damage = find_changes(best) if best.is_dir() else "it is missing"
            if step <= self.changed_at:
                damage = "options that it was trained or chosen with have changed since"
            if damage:
                logger.warning(
                    "The best checkpoint so far, %s, cannot be used: %s. The best of the coming ones will be used.",
                    best,
                    damage,
                )
                self.state.best_global_step = self.state.best_metric = self.state.best_model_checkpoint = None
            else:
                self.state.best_model_checkpoint = str(best)
        return result

    @contextlib.contextmanager
    def _published(self) -> Iterator[None]:
        """Make `self.model` what stock classes load, inside this context."""
        with self.ema.applied() if self.ema else contextlib.nullcontext():
            model = self.model
            if self.lora:
                self.model = remove_lora(copy.deepcopy(self.lora), merge=True)
            try:
                yield
            finally:
                self.model = model
