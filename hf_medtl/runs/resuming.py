"""Options that may change when a run is resumed, those that may not, and the record of changes in recipe.yaml."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.errors import MedtlError
from hf_medtl.runs.folder import changed_options
from hf_medtl.training.recipe import Recipe, default_value

logger = logging.getLogger("hf_medtl")

# Without effect on what is learned: they are not recorded. After training: decisions, tests, figures, publishing.
FREE = {
    *(
        "columns",
        "conformal_alpha",
        "drop_overlap",
        "external_columns",
        "external_dataset",
        "external_labels",
        "external_sources",
    ),
    *("figures", "fill_holes", "largest_components", "license_waiver", "model_license", "positive_label"),
    *("publish_names", "threshold"),
    *("dataloader_in_order", "dataloader_multiprocessing_context", "dataloader_num_workers", "dataloader_pin_memory"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor", "ddp_backend", "ddp_broadcast_buffers"),
    *("ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout", "debug"),
    *("disable_tqdm", "eval_accumulation_steps", "eval_use_gather_object", "per_device_eval_batch_size"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
    *("gradient_checkpointing_kwargs", "torch_empty_cache_steps", "skip_memory_metrics"),
    *("hub_always_push", "hub_model_id", "hub_private_repo", "hub_strategy", "push_to_hub"),
    *("log_level", "log_level_replica", "log_on_each_node", "logging_first_step", "logging_nan_inf_filter"),
    *("logging_steps", "logging_strategy", "project", "report_to", "run_name", "trackio_bucket_id"),
    *("trackio_space_id", "trackio_static_space_id", "save_on_each_node", "save_total_limit", "use_cpu"),
    *("do_eval", "do_predict", "do_train", "restore_callback_states_from_checkpoint"),
}
# These take effect from the checkpoint on, and are recorded.
RECORDED = {
    *("early_stopping_patience", "eval_delay", "eval_on_start", "eval_steps", "eval_strategy", "full_determinism"),
    *("lr_scheduler_kwargs", "lr_scheduler_type", "lr_step_epochs", "lr_step_factor", "max_grad_norm", "max_steps"),
    *("mixed_precision", "bf16", "bf16_full_eval", "fp16", "fp16_full_eval", "tf32", "torch_compile"),
    *("torch_compile_backend", "torch_compile_mode", "num_train_epochs", "save_only_model", "save_steps"),
    *("save_strategy", "warmup_steps"),
}
# These change what is learned, or which weights are chosen, from the checkpoint on: with --allow_changes.
MEANING = {
    *("augmentation", "class_weights", "cutmix", "effective_beta", "fit", "focal_gamma", "greater_is_better"),
    *("label_smoothing_factor", "load_best_model_at_end", "loss", "lung_model", "metric_for_best_model", "mixup"),
    *("neftune_noise_alpha", "preprocessing"),
}
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
NOTE = "# Resumed "
ALLOWED = " (--allow_changes)"  # ends the notes of MEANING


def check_changes(recipe: Recipe, checkpoint: str) -> list[str]:
    """Return what a resumed run changes of its recipe, as comments for recipe.yaml, after those of earlier resumes.

    Args:
        recipe: options of the resumed run.
        checkpoint: folder to resume from; recipe.yaml lies beside it.

    Raises:
        MedtlError: a change that would mix two trainings in one model, or have no effect.
    """
    run, step = RunFolder(Path(checkpoint).parent), Path(checkpoint).name.removeprefix("checkpoint-")
    changes = changed_options(run, recipe.to_yaml())
    if not (run.path / "recipe.yaml").is_file():
        logger.warning("%s has no recipe.yaml: its options cannot be compared with those that are given now.", run.path)
    same_batch = _step_images(run.recipe) == _step_images(yaml.safe_load(recipe.to_yaml()) or {})
    recorded = RECORDED | {*BATCH} if same_batch else RECORDED
    possible = recorded | (MEANING if recipe.allow_changes else set())
    refused = {name: text for name, text in changes.items() if name not in FREE | possible}
    if refused:
        allow = "" if {*refused} - MEANING else "allow it (--allow_changes), and the card tells of it; "
        raise MedtlError(
            f"{'; '.join(refused.values())}. Training cannot go on from {checkpoint} with that: give what it was, "
            f"{allow}or start another run in another --output_dir."
        )
    notes = [
        f"{NOTE}at step {step}: {_brief(text)}{ALLOWED * (name in MEANING)}"
        for name, text in changes.items()
        if name in possible
    ]
    before = RunFolder(checkpoint).config.get("positive_label")
    if recipe.allow_changes and recipe.positive_label and before not in (None, recipe.positive_label):
        notes.append(f"{NOTE}at step {step}: --positive_label was {before}, then {recipe.positive_label}{ALLOWED}")
    return [*read_notes(run), *notes]


def last_change(notes: Sequence[str]) -> int:
    """Return the step from which on the weights are those of the recipe: earlier ones were chosen by another.

    Args:
        notes: Comments of recipe.yaml.
    """
    steps = [note.removeprefix(f"{NOTE}at step ").partition(":")[0] for note in notes if note.endswith(ALLOWED)]
    return max(map(int, steps), default=0)


def read_notes(run: RunFolder) -> list[str]:
    """Return the comments of recipe.yaml about changes when the run was resumed."""
    path = run.path / "recipe.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if line.startswith(NOTE)]


def _step_images(options: dict[str, int]) -> int:
    """Return the number of images of an optimizer step."""
    defaults = {name: default_value(Recipe.__dataclass_fields__[name]) for name in BATCH}
    return math.prod(int(options.get(name, defaults[name])) for name in BATCH)


def _brief(text: str) -> str:
    """Shorten a change from `changed_options`: a comment needs neither the run's path nor a full sentence."""
    before, _, after = text.partition(" in the run of ")
    return f"{before}, then {after.rpartition(' and is ')[2].removesuffix(' now')}"
