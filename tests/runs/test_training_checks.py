"""Checks of how training would go: metric, batches, optimizer, schedule, memory."""

import logging

import pytest
import torch

from hf_medtl import MedtlError, Recipe
from hf_medtl.runs import preflight
from hf_medtl.runs.training_checks import check_training
from hf_medtl.tasks import task_for_dataset
from hf_medtl.training.distributed import StepShardSampler, smallest_batch, split_evenly
from tests.support.commands import options
from tests.support.segmentation_runs import segmentation_recipe


@pytest.fixture
def check(phantoms, tiny_checkpoint, tmp_path):
    """Return a function that makes all checks before training with the tiny ViT, or another model."""

    def check(model: str | None = None, **more: object) -> preflight.Plan:
        recipe = Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", **more))
        if model:
            recipe.model_name_or_path, recipe.from_scratch = model, True
        return preflight.check(recipe)

    return check


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metric_for_best_model": "auc"}, "must be one of .* but is 'auc'. Did you mean 'roc_auc'"),
        ({"metric_for_best_model": "runtime"}, "must be one of .*roc_auc"),
        ({"greater_is_better": True}, "would choose the checkpoint with the worst loss"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 64}, "there are 28 training images"),
        ({"eval_delay": 3}, "--eval_delay 3 is after the end of training, at 2 epochs"),
        ({"optim": "adamw_bnb_8bit"}, "--optim adamw_bnb_8bit does not work .*bitsandbytes"),
        ({"optim_args": "foo"}, "--optim adamw_torch"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr .*--lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "--lr_scheduler_type cosine .*foo"),
        ({"model": "cnn_baseline", "gradient_checkpointing": True}, "MedicalCnn.* does not support it"),
    ],
)
def test_what_would_end_training_is_an_error_before_it(check, tmp_path, more, message):
    with pytest.raises(MedtlError, match=message):
        check(**more)
    assert not (tmp_path / "run").exists()


def test_usual_options_pass(check):
    check(metric_for_best_model="eval_roc_auc", lr_scheduler_type="reduce_lr_on_plateau", optim="adafactor")
    check(optim="adam", lr_step_epochs=1, gradient_checkpointing=True)


def test_a_learning_rate_for_fine_tuning_is_noted_with_random_weights(check, caplog):
    check("cnn_baseline", learning_rate=5e-4)
    check(learning_rate=2e-5)  # of a pretrained checkpoint
    assert "fine-tuning" not in caplog.text
    check("cnn_baseline", learning_rate=2e-5)
    assert "--learning_rate 2e-05 is for fine-tuning" in caplog.text


def test_a_metric_needs_its_labels_in_the_validation_split(check, caplog):
    plan = check(metric_for_best_model="roc_auc")
    loaded = plan.loaded
    lost = (loaded.table["split"] == "validation") & (loaded.table["label"] == "lesion")
    loaded.table.loc[lost, "split"] = "train"
    recipe = Recipe(use_cpu=True, metric_for_best_model="roc_auc")
    with pytest.raises(MedtlError, match="roc_auc is undefined on the validation split, which has no image of lesion"):
        check_training(recipe, task_for_dataset(loaded), loaded, plan.model, plan.processor)
    check_training(Recipe(use_cpu=True), task_for_dataset(loaded), loaded, plan.model, plan.processor)
    assert "The validation split has no image of lesion: temperature" in caplog.text


def test_a_last_batch_of_one_image_is_left_out_where_batch_norm_cannot_train_on_it(
    check, chest_phantoms, tmp_path, caplog
):
    """DeepLabV3+ normalises the mean over the whole map, of which a batch of one image has one."""
    caplog.set_level(logging.WARNING)
    deeplab = {"model_name_or_path": "deeplabv3plus", "encoder": "resnet18", "image_size": 32}
    recipe = segmentation_recipe(chest_phantoms, tmp_path / "run", **deeplab)
    loaded = recipe.load_data()
    task, number = task_for_dataset(loaded), len(loaded.rows("train"))
    model, processor, _ = preflight.build(recipe, loaded)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    recipe.undivided = (number - 1, 1)
    check_training(recipe, task, loaded, model, processor)
    assert "is left out" in caplog.text
    assert recipe.dataloader_drop_last
    recipe.undivided, recipe.dataloader_drop_last = (1, 1), False
    with pytest.raises(MedtlError, match="Set --per_device_train_batch_size to 2 or more"):
        check_training(recipe, task, loaded, model, processor)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    caplog.clear()
    check(per_device_train_batch_size=1)  # a ViT has no batch norm
    assert caplog.text == ""


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("number", "batch", "accumulation"), [(29, 7, 1), (29, 4, 2), (33, 8, 2), (9, 8, 1)])
def test_smallest_batch_is_that_of_the_sampler(number, batch, accumulation, drop_last, processes):
    used = number - (number % batch if drop_last else 0)
    if processes == 1:
        sizes = [min(batch, used - start) for start in range(0, used, batch)]
    else:
        size, _ = split_evenly(batch, accumulation, processes)
        sizes = [
            len(part)
            for rank in range(processes)
            for part in StepShardSampler(
                range(number), used, batch * accumulation, size, rank, processes, torch.zeros(())
            )
        ]
    assert smallest_batch(number, batch, accumulation, drop_last, processes) == min(sizes)
