"""Segmentation from masks on disk to a folder that stock code loads, on synthetic chest radiographs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    EvalPrediction,
    TrainerCallback,
    pipeline,
)

from hf_medtl import MedtlError, Recipe, load, read_image, run
from hf_medtl.data.images import read_mask
from hf_medtl.data.phantoms import write_phantoms
from hf_medtl.evaluation.evaluate import predict_masks
from hf_medtl.evaluation.masks import IGNORE_INDEX, MASK_METRICS, mask_metrics
from hf_medtl.evaluation.postprocessing import postprocess
from hf_medtl.models.smp import SmpForSemanticSegmentation
from hf_medtl.runs.evaluate import evaluate_model
from hf_medtl.runs.preflight import build
from hf_medtl.runs.train import make_trainer
from hf_medtl.tasks import TASKS
from tests.support.commands import options
from tests.support.resumed_training import build_trainer
from tests.support.segmentation_runs import segmentation_recipe
from tests.support.tiny_models import save_segformer

# User code with stock transformers, in a process where hf_medtl can't be imported.
STOCK_CODE = """
import json, sys
sys.modules["hf_medtl"] = None
import numpy as np
from PIL import Image
from transformers import pipeline
segment = pipeline("image-segmentation", sys.argv[1], trust_remote_code=True, device="cpu")
dice = []
for image, mask in zip(sys.argv[2::2], sys.argv[3::2]):
    masks = {row["label"]: np.asarray(row["mask"]) > 0 for row in segment(image)}
    true = np.asarray(Image.open(mask)) > 0
    predicted = masks.get("lungs", np.zeros_like(true))
    dice.append(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
print(json.dumps(dice))
"""


class StopAfter(TrainerCallback):
    """Stop training after some of its epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = round(state.epoch) >= self.epochs


@pytest.fixture(scope="module")
def segmented(chest_phantoms, tmp_path_factory) -> Path:
    """Return a finished run with postprocessing."""
    output = tmp_path_factory.mktemp("runs") / "segmented"
    return run(segmentation_recipe(chest_phantoms, output, num_train_epochs=6, largest_components=2, fill_holes=True))


@pytest.fixture(scope="module")
def measured(segmented) -> dict:
    return json.loads((segmented / "results.json").read_text())


@pytest.mark.slow
def test_run_folder_is_complete(segmented, measured):
    assert measured["task"] == "image-segmentation"
    assert measured["labels"] == ["background", "lungs"]
    assert set(measured["metrics"]) == set(MASK_METRICS)
    assert measured["metrics"]["dice"]["value"] > 0.6
    assert measured["metrics"]["dice"]["low"] <= measured["metrics"]["dice"]["value"]
    assert set(measured["by_source"]) == {"chest-phantoms"}
    assert measured["both_empty"] == measured["one_empty"] == 0
    assert measured["surface_tolerance"] == "2 pixels"
    gain = measured["postprocessing_gain"]["dice"]
    table = pd.read_csv(segmented / "predictions.csv")
    assert len(table) == measured["n"] == 8
    assert gain["value"] == pytest.approx((table["dice"] - table["raw_dice"]).mean())
    assert measured["metrics"]["dice"]["value"] == pytest.approx(table["dice"].mean())
    for name in ("history", "outlines", "dice_by_source"):
        assert (segmented / "figures" / f"{name}.png").stat().st_size > 5000
    card = (segmented / "README.md").read_text()
    for text in ("pipeline_tag: image-segmentation", "that segments: lungs", "| Dice | 0.", "| Surface Dice | 0.",
                 "outline that is within 2 pixels of the other", "change by postprocessing",
                  "2 largest components", "holes are filled", "a new unet", "trust_remote_code=True"):  # fmt: skip
        assert text in card
    assert "temperature" not in card
    assert "ROC" not in card
    assert not (segmented / "UNFINISHED").exists()


def test_model_card_tables_are_valid_markdown(segmented):
    lines = (segmented / "README.md").read_text().splitlines()
    rule = lines.index("|---|---|---|")
    assert lines[rule - 1].startswith("| metric")
    assert all(line.startswith("| ") for line in lines[rule + 1 : rule + 6])


@pytest.mark.slow
def test_stock_pipeline_gives_the_measured_masks(stock_pool, segmented, chest_phantoms):
    table = pd.read_csv(segmented / "predictions.csv")
    files = [
        str(path)
        for name in table["image_id"]
        for path in (chest_phantoms / name, chest_phantoms / "masks" / Path(name).name)
    ]
    process = stock_pool.run_code(STOCK_CODE, segmented, *files)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == pytest.approx(table["raw_dice"].tolist(), abs=1e-9)


def test_predictor_applies_saved_postprocessing(segmented, chest_phantoms):
    config = json.loads((segmented / "config.json").read_text())
    assert config["postprocessing"] == {"largest_components": 2, "fill_holes": True}
    table = pd.read_csv(segmented / "predictions.csv")
    paths = [chest_phantoms / name for name in table["image_id"]]
    for row, path, raw in zip(table.itertuples(), paths, predict_masks(segmented, paths, read_image), strict=True):
        true = np.asarray(read_mask([chest_phantoms / "masks" / path.name])) > 0
        metrics = mask_metrics(true, postprocess(raw, config["postprocessing"]))
        assert [metrics[name] for name in MASK_METRICS] == pytest.approx([getattr(row, name) for name in MASK_METRICS])


def test_training_and_pipeline_agree(segmented, chest_phantoms, tmp_path):
    """Validation Dice at the model's size equals that of the pipeline for images of this size."""
    loaded = load("chest-phantoms", chest_phantoms, task="image-segmentation")
    trainer = build_trainer(segmentation_recipe(chest_phantoms, tmp_path))
    trainer.model.load_state_dict(load_file(segmented / "model.safetensors"))
    predictions = TASKS["segmentation"].predict(segmented, loaded, "validation")
    assert trainer.evaluate()["eval_dice"] == pytest.approx(predictions["raw_dice"].mean(), abs=1e-6)


def test_validation_keeps_no_logits(chest_phantoms, tmp_path):
    """TRAP: Trainer would keep the logits and masks of the whole validation split in memory."""
    trainer = build_trainer(segmentation_recipe(chest_phantoms, tmp_path))
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation")
    assert np.asarray(output.predictions).shape == (8, 1, 2)
    assert np.asarray(output.label_ids).shape == (8, 1)


def test_validation_metrics_average_over_images():
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(5, 3, 8, 8)), dtype=torch.float32)
    masks = torch.tensor(rng.integers(0, 3, (5, 8, 8)))
    masks[0], masks[1, :4] = 0, IGNORE_INDEX
    logits[0, 0] += 100  # empty reference and prediction
    counted, true = TASKS["segmentation"].reduce_logits(logits, masks)
    metrics = TASKS["segmentation"].validation_metrics(EvalPrediction(counted.numpy(), true.numpy()))
    per_image = [
        mask_metrics(mask, scores.argmax(0), ("background", "one", "two"))
        for mask, scores in zip(masks.numpy(), logits.numpy(), strict=True)
    ]
    for name in ("dice", "iou"):
        assert metrics[name] == pytest.approx(np.mean([row[name] for row in per_image]))


def test_resizes_smaller_logits_to_masks():
    logits, masks = torch.randn(2, 2, 4, 4), torch.randint(0, 2, (2, 16, 16))
    loss = TASKS["segmentation"].loss(Recipe(output_dir="x", use_cpu=True, loss="dice"), ("a", "b"), None)
    assert loss(logits, masks) > 0
    assert TASKS["segmentation"].reduce_logits(logits, masks)[0].shape == (2, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "epochs"), [("full", 1), ("feature_extraction", 1), ("lp_ft", 1), ("lp_ft", 2)])
def test_frozen_encoder_stays_bit_identical(strategy, epochs, chest_phantoms, tmp_path):
    weights = tmp_path / "weights"
    first = build_trainer(segmentation_recipe(chest_phantoms, tmp_path / "first"))
    first.model.save_pretrained(weights)
    first.processing_class.save_pretrained(weights)
    overrides = {"encoder": None, "encoder_weights": str(weights), "strategy": strategy, "num_train_epochs": 2}
    overrides |= {"probe_epochs": 1} if strategy == "lp_ft" else {}
    trainer = build_trainer(
        segmentation_recipe(
            chest_phantoms, tmp_path / "run", load_best_model_at_end=False, early_stopping_patience=0, **overrides
        )
    )
    trainer.add_callback(StopAfter(epochs))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for name, tensor in first.model.encoder.state_dict().items():
        assert torch.equal(before[f"encoder.{name}"], tensor), name
    trainer.train()
    after = trainer.model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert any(name.startswith("encoder.") for name in changed) == (strategy == "full" or epochs == 2)
    assert any(name.startswith("decoder.") for name in changed)
    assert any(name.startswith("segmentation_head.") for name in changed)


def test_decoder_and_head_get_the_head_learning_rate(chest_phantoms, tmp_path):
    trainer = build_trainer(segmentation_recipe(chest_phantoms, tmp_path, head_learning_rate=0.01))
    rates = {id(p): group["peak"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        assert rates[id(parameter)] == (3e-3 if name.startswith("encoder.") else 0.01), name


@pytest.fixture(scope="module")
def mostly_healthy(tmp_path_factory) -> Path:
    """Return 24 images of 12 patients with masks, of which a quarter shows a lesion of 16 of 256 pixels."""
    folder, rng = tmp_path_factory.mktemp("data") / "lesions", np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(24):
        mask = np.zeros((16, 16), np.uint8)
        mask[4:8, 4:8] = 255 * (i % 4 == 0)
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
        pixels = rng.integers(0, 200, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    return folder


def lesion_recipe(data: Path, output: Path, **more: object) -> Recipe:
    return segmentation_recipe(data, output, dataset="imagefolder", image_size=32, official_split=False, **more)


def test_class_weights_are_those_of_the_training_pixels(mostly_healthy, tmp_path):
    recipe = lesion_recipe(mostly_healthy, tmp_path, class_weights="balanced", loss="cross_entropy")
    loaded = recipe.load_data()
    train = loaded.rows("train")
    lesion = np.mean([np.asarray(Image.open(mostly_healthy / path)) > 0 for path in train["mask"]])
    _, _, loss = build(recipe, loaded)
    mask = torch.zeros(1, 4, 4, dtype=torch.int64)
    even = torch.zeros(1, 2, 4, 4)
    background, of_lesion = loss(even, mask).item(), loss(even, mask + 1).item()
    assert of_lesion / background == pytest.approx(min(50, (1 - lesion) / lesion), rel=1e-5)
    assert background * (1 - lesion) + of_lesion * lesion == pytest.approx(np.log(2), rel=1e-5)


def test_images_of_rare_classes_are_repeated_with_their_own_augmentation(mostly_healthy, tmp_path):
    recipe = lesion_recipe(mostly_healthy, tmp_path, oversampling=1.0, augmentation="light")
    loaded = recipe.load_data()
    trainer = make_trainer(recipe, loaded, *build(recipe, loaded))
    train = trainer.train_dataset
    with_lesion = [
        bool((np.asarray(Image.open(mostly_healthy / path)) > 0).any()) for path in loaded.rows("train")["mask"]
    ]
    factor = (len(with_lesion) / sum(with_lesion)) ** 0.5
    times = [train.indices.count(index) for index in dict.fromkeys(train.indices)]  # sorted as the rows
    assert len(times) == len(with_lesion)
    for number, lesion in zip(times, with_lesion, strict=True):
        assert number in ((int(factor), int(factor) + 1) if lesion else (1,))
    sampler = trainer.get_train_dataloader().sampler
    assert len(sampler) == len(train) == sum(times) > len(with_lesion)
    first = next(i for i, index in enumerate(train.indices) if index == train.indices[i + 1])
    assert not torch.equal(train[first]["pixel_values"], train[first + 1]["pixel_values"])
    assert len(trainer.eval_dataset) == len(loaded.rows("validation"))


def test_oversampling_without_rare_classes_is_refused_before_training(chest_phantoms, mostly_healthy, tmp_path):
    with pytest.raises(MedtlError, match="the rarest class is in 1 of the training images"):
        run(segmentation_recipe(chest_phantoms, tmp_path / "run", oversampling=1.0))
    with pytest.raises(MedtlError, match="--surface_tolerance 2 mm needs the pixel spacing of each test image"):
        run(lesion_recipe(mostly_healthy, tmp_path / "run", surface_tolerance="2mm"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_resume_matches_uninterrupted_run(chest_phantoms, tmp_path):
    uninterrupted = build_trainer(
        segmentation_recipe(chest_phantoms, tmp_path / "one", num_train_epochs=3, augmentation="chest")
    )
    uninterrupted.train()
    steps = uninterrupted.state.max_steps // 3
    checkpoint = tmp_path / "one" / f"checkpoint-{2 * steps}"
    resumed = build_trainer(
        segmentation_recipe(chest_phantoms, tmp_path / "one", num_train_epochs=3, augmentation="chest", seed=1)
    )
    with torch.no_grad():
        for tensor in resumed.model.parameters():
            tensor.fill_(0.5)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    resumed_weights = resumed.model.state_dict()
    for name, tensor in uninterrupted.model.state_dict().items():
        assert torch.equal(resumed_weights[name], tensor), name


@pytest.mark.slow
def test_checkpoints_restore_every_tensor(chest_phantoms, tmp_path):
    """TRAP: plain load_state_dict leaves missing tensors as they are."""
    trainer = build_trainer(segmentation_recipe(chest_phantoms, tmp_path, num_train_epochs=1))
    trainer.train()
    folder = next(tmp_path.glob("checkpoint-*"))
    saved = SmpForSemanticSegmentation.from_pretrained(folder).state_dict()
    with torch.no_grad():
        for tensor in trainer.model.parameters():
            tensor.fill_(0.5)
    trainer._load_from_checkpoint(str(folder))
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(saved[name], tensor), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mixup": 0.2}, "--mixup: not for --task image-segmentation"),
        ({"cutmix": 1.0}, "--cutmix"),
        ({"effective_beta": 0.9}, "bce_dice or tversky"),
        ({"class_weights": "effective", "loss": "focal"}, "pixels of one image are no independent samples"),
        ({"class_weights": "balanced", "loss": "tversky"}, "balanced has no effect on --loss tversky"),
        ({"class_weights": "balanced", "oversampling": 0.5}, "together would do so twice"),
        ({"oversampling": 1.5}, "--oversampling must be from 0 to 1, but is 1.5"),
        ({"surface_tolerance": "2cm"}, "--surface_tolerance must be a distance in pixels or mm"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor"),
        ({"head_dropout": 0.5}, "--head_dropout"),
        ({"positive_label": "normal"}, "learns no image labels"),
        ({"from_scratch": True}, "--encoder_weights none"),
        ({"strategy": "lora"}, "--strategy must be one of full, feature_extraction, lp_ft for segmentation"),
        ({"strategy": "feature_extraction"}, "would freeze the random weights"),
        ({"model_name_or_path": Recipe.model_name_or_path}, "needs --model_name_or_path unet or"),
        ({"model_name_or_path": "somebody/unet"}, "only for a new network"),
        ({"task": "image-classification", "model_name_or_path": "cnn"}, "only for --task image-segmentation"),
        ({"task": "image-segmentatoin"}, "--task must be image-classification or image-segmentation"),
    ],
    ids=str,
)
def test_rejects_invalid_options_before_data_are_read(overrides, message, tmp_path):
    with pytest.raises(MedtlError, match=message):
        run(segmentation_recipe(tmp_path / "absent", tmp_path / "run", **overrides))


def test_losses_differ_by_task(phantoms, tiny_checkpoint, tmp_path):
    message = "--loss must be one of cross_entropy, focal for classification, but is 'dice'"
    with pytest.raises(MedtlError, match=message):
        run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", loss="dice")))
    with pytest.raises(MedtlError, match="--loss must be cross_entropy, focal, dice"):
        segmentation_recipe(phantoms, tmp_path / "run", loss="dicee")


@pytest.mark.parametrize("mask_values", ["0=background", "0:background,1:lungs", "0=a,300=b", "0=a,x=b", "0=a,1="])
def test_rejects_invalid_mask_values(mask_values, tmp_path):
    with pytest.raises(MedtlError, match="--mask_values must be pairs"):
        segmentation_recipe(tmp_path, tmp_path / "run", mask_values=mask_values)


@pytest.mark.slow
def test_recipe_and_card_contain_no_encoder_path(chest_phantoms, segmented, tmp_path):
    weights = tmp_path / "secret-place" / "encoder"
    trainer = build_trainer(segmentation_recipe(chest_phantoms, tmp_path / "first"))
    trainer.model.save_pretrained(weights)
    trainer.processing_class.save_pretrained(weights)
    overrides = {"encoder": None, "encoder_weights": str(weights), "num_train_epochs": 1}
    folder = run(segmentation_recipe(chest_phantoms, tmp_path / "run", **overrides))
    for name in ("recipe.yaml", "README.md", "config.json", "results.json"):
        assert "secret-place" not in (folder / name).read_text(), name
    assert "encoder_weights: encoder" in (folder / "recipe.yaml").read_text()
    assert "folder `encoder`" in (folder / "README.md").read_text()


def copy_with_masks(chest_phantoms: Path, folder: Path, change) -> Path:
    """Copy the phantoms with masks as returned by `change(name, mask)`; None removes the mask."""
    for path in chest_phantoms.glob("*/*.png"):
        target = folder / path.relative_to(chest_phantoms)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name != "masks":
            target.write_bytes(path.read_bytes())
        elif (mask := change(path.name, np.array(Image.open(path)))) is not None:
            Image.fromarray(mask).save(target)
    return folder


@pytest.mark.slow
def test_images_without_mask_are_excluded_and_listed(chest_phantoms, tmp_path):
    data = copy_with_masks(
        chest_phantoms, tmp_path / "data", lambda name, mask: None if name.endswith("0001_0.png") else mask
    )
    folder = run(segmentation_recipe(data, tmp_path / "run", num_train_epochs=1))
    excluded = pd.read_csv(folder / "excluded.csv")
    assert excluded["kind"].tolist() == ["without a mask"]
    assert excluded["path"].tolist() == ["normal/chest-0001_0.png"]
    assert len(pd.read_csv(folder / "splits.csv")) == 35
    assert "1 images are excluded: without a mask." in (folder / "README.md").read_text()


def test_rejects_dataset_without_masks(chest_phantoms, tmp_path):
    data = copy_with_masks(chest_phantoms, tmp_path / "data", lambda name, mask: None)
    with pytest.raises(MedtlError, match=r"None of the 36 images in .* has a mask.*masks such as"):
        run(segmentation_recipe(data, tmp_path / "run"))


@pytest.mark.slow
def test_mask_values_define_multiple_classes(chest_phantoms, tmp_path):
    def two_lungs(name: str, mask: np.ndarray) -> np.ndarray:
        left = np.arange(mask.shape[1]) < mask.shape[1] // 2
        return np.where(mask > 0, np.where(left, 128, 255), 0).astype(np.uint8)

    data = copy_with_masks(chest_phantoms, tmp_path / "data", two_lungs)
    values = "0=background,128=right_lung,255=left_lung"
    folder = run(segmentation_recipe(data, tmp_path / "run", mask_values=values, num_train_epochs=2))
    result = json.loads((folder / "results.json").read_text())
    assert result["labels"] == ["background", "right_lung", "left_lung"]
    assert set(result["per_class"]) == {"right_lung", "left_lung"}
    table = pd.read_csv(folder / "predictions.csv")
    assert table["dice"].to_numpy() == pytest.approx(table[["dice_right_lung", "dice_left_lung"]].mean(axis=1))
    config = json.loads((folder / "config.json").read_text())
    assert config["mask_values"] == {"0": 0, "128": 1, "255": 2}
    card = (folder / "README.md").read_text()
    assert "| left_lung | 0." in card
    with pytest.raises(MedtlError, match="expected a mask with the values 0, 255"):
        run(segmentation_recipe(data, tmp_path / "other", mask_values="0=background,255=lungs"))


@pytest.mark.slow
def test_external_dataset_needs_matching_masks_but_no_labels(chest_phantoms, segmented, tmp_path):
    external_data = write_phantoms(tmp_path / "other", "chest", patients=6, images=2, size=96, seed=7)
    (tmp_path / "renamed").mkdir()
    for name, new in (("normal", "a"), ("opacity", "b"), ("masks", "masks")):
        (external_data / name).rename(tmp_path / "renamed" / new)
    overrides = {
        "external_dataset": "imagefolder",
        "external_data_dir": str(tmp_path / "renamed"),
        "num_train_epochs": 1,
    }
    folder = run(segmentation_recipe(chest_phantoms, tmp_path / "run", **overrides))
    result = json.loads((folder / "results.json").read_text())
    external = result["external"]
    assert external["n"] == 12 == len(pd.read_csv(folder / "external.csv"))
    expected = result["metrics"]["dice"]["value"] - external["metrics"]["dice"]["value"]
    assert external["drop"]["dice"]["value"] == pytest.approx(expected)
    assert external["drop"]["dice"]["low"] <= expected <= external["drop"]["dice"]["high"]
    assert "lower than above by" in (folder / "README.md").read_text()
    again = evaluate_model(folder, "imagefolder", tmp_path / "renamed", out=tmp_path / "again", by=["source"])[1]
    assert {key: again[key] for key in external if key != "split"} == {
        k: v for k, v in external.items() if k != "split"
    }
    assert again["slices"]["source"]["imagefolder"]["n"] == 12
    assert (tmp_path / "again" / "figures" / "outlines.png").exists()


def test_rejects_external_data_that_overlap_or_have_other_masks(chest_phantoms, phantoms, tmp_path):
    overlapping = {"external_dataset": "chest-phantoms", "external_data_dir": str(chest_phantoms)}
    with pytest.raises(MedtlError, match="are among those seen in training"):
        run(segmentation_recipe(chest_phantoms, tmp_path / "run", **overlapping))
    brain = {"external_dataset": "brain-phantoms", "external_data_dir": str(phantoms)}
    with pytest.raises(MedtlError, match="masks of brain-phantoms show lesion, those of chest-phantoms lungs"):
        run(segmentation_recipe(chest_phantoms, tmp_path / "run", **brain))


@pytest.mark.parametrize("layout", ["images and masks", "splits of them", "table"])
def test_own_images_need_no_labels(layout, chest_phantoms, tmp_path):
    prefixes = {"images and masks": [""], "splits of them": ["train/", "test/"], "table": ["some/"]}[layout]
    for i, path in enumerate(sorted(chest_phantoms.glob("*/chest-*_0.png"))):
        if path.parent.name == "masks":
            continue
        for folder, source in (("images", path), ("masks", chest_phantoms / "masks" / path.name)):
            target = tmp_path / f"{prefixes[i % len(prefixes)]}{folder}" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    dataset, data = "imagefolder", tmp_path
    if layout == "table":
        dataset, data = "table", tmp_path / "all.csv"
        names = [path.name for path in sorted(tmp_path.glob("some/images/*"))]
        rows = [{"file_name": f"some/images/{name}", "mask": f"some/masks/{name}"} for name in names]
        pd.DataFrame(rows).to_csv(data, index=False)
    loaded = load(dataset, data, task="image-segmentation")
    assert len(loaded.table) == 18
    assert min(counts["(all)"] for counts in loaded.counts().values()) > 0
    for image, mask in zip(loaded.table["path"], loaded.table["mask"], strict=True):
        assert mask == image.replace("images/", "masks/")
    with pytest.raises(MedtlError):
        load(dataset, data)


@pytest.mark.slow
def test_segformer_trains_and_loads_without_custom_code(chest_phantoms, tmp_path):
    folder = save_segformer(tmp_path / "tiny-segformer")
    overrides = {"model_name_or_path": str(folder), "encoder": None, "encoder_weights": "imagenet", "image_size": None}
    run_folder = run(
        segmentation_recipe(
            chest_phantoms, tmp_path / "run", strategy="feature_extraction", num_train_epochs=1, **overrides
        )
    )
    before, after = (load_file(path / "model.safetensors") for path in (folder, run_folder))
    shared = {name for name in before if before[name].shape == after[name].shape}
    changed = {name for name in shared if not torch.equal(after[name], before[name])}
    assert changed
    assert all(name.startswith("decode_head.") for name in changed)
    assert not list(run_folder.glob("*.py"))
    card = (run_folder / "README.md").read_text()
    assert "trust_remote_code" not in card
    assert "folder `tiny-segformer`" in card  # a folder is not a Hub id, so it is not in the metadata
    assert "base_model:" not in card


def test_rejects_bad_external_mask_before_training(chest_phantoms, tmp_path):
    external_data = write_phantoms(tmp_path / "other", "chest", patients=6, images=2, size=64, seed=7)
    for mask in (external_data / "masks").glob("*.png"):
        Image.fromarray((np.arange(4096) % 256).astype(np.uint8).reshape(64, 64)).save(mask)
    overrides = {"external_dataset": "chest-phantoms", "external_data_dir": str(external_data), "drop_overlap": True}
    with pytest.raises(MedtlError, match="expected a mask in black and white"):
        run(segmentation_recipe(chest_phantoms, tmp_path / "run", **overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_reads_masks_with_other_size_gray_edges_color_or_empty(chest_phantoms, tmp_path):
    """Images of 299 pixels with masks of 256, as in covid19-radiography."""
    empty = {f"chest-{patient:04}_{i}.png" for patient in range(0, 18, 2) for i in (0, 1)}

    def change(name: str, mask: np.ndarray) -> np.ndarray:
        smooth = np.asarray(Image.fromarray(mask).resize((256, 256), Image.Resampling.BILINEAR))  # grey edges
        return np.dstack([0 * smooth if name in empty else smooth] * 3)

    data = copy_with_masks(chest_phantoms, tmp_path / "data", change)
    for path in data.glob("*/*.png"):
        if path.parent.name != "masks":
            Image.open(path).resize((299, 299)).save(path)
    folder = run(segmentation_recipe(data, tmp_path / "run", num_train_epochs=1, seed=3))
    table = pd.read_csv(folder / "predictions.csv")
    result = json.loads((folder / "results.json").read_text())
    bare = table["image_id"].str.split("/").str[-1].isin(empty)
    assert 0 < bare.sum() < len(table)
    assert result["both_empty"] + result["one_empty"] == bare.sum()
    assert table.loc[bare, "dice"].isin([0, 1]).all()
    assert table.loc[~bare, "dice"].between(0.2, 0.99).all()
    path = data / table["image_id"].iloc[-1]
    segment = pipeline("image-segmentation", str(folder), device="cpu")
    assert {part["mask"].size for part in segment(str(path))} == {(299, 299)}


def test_reports_masks_with_other_aspect_ratio_or_without_image(chest_phantoms, tmp_path, caplog):
    data = copy_with_masks(
        chest_phantoms, tmp_path / "data", lambda name, mask: mask[:40] if name.endswith("0001_0.png") else mask
    )
    Image.new("L", (64, 64)).save(data / "masks" / "nobody.png")
    with pytest.raises(MedtlError, match=r"64 × 40 pixels, but its image .* has 64 × 64"):
        run(segmentation_recipe(data, tmp_path / "run"))
    assert "1 masks belong to none of these images: masks/nobody.png." in caplog.text
    cropped = copy_with_masks(chest_phantoms, tmp_path / "cropped", lambda name, mask: mask[:, :40])
    overrides = {"external_dataset": "chest-phantoms", "external_data_dir": str(cropped), "drop_overlap": True}
    own_data = write_phantoms(tmp_path / "other", "chest", patients=6, images=2, size=64, seed=7)
    with pytest.raises(MedtlError, match=r"40 × 64 pixels, but its image"):
        run(segmentation_recipe(own_data, tmp_path / "second", **overrides))
    assert not (tmp_path / "second").exists()
