"""Predictor: the numbers of stock pipeline(), and the saved decision settings."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image, ImageOps
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

from hf_medtl import MedtlError, Predictor, Recipe, run
from hf_medtl.data.phantoms import write_phantoms
from hf_medtl.explain.maps import explain
from hf_medtl.publish.hub import push
from tests.support.commands import COMMAND, WAIVED, options
from tests.support.dicom_files import make_dicom, save_dicom
from tests.support.process_pool import ForkedProcess
from tests.support.tiny_models import build_tiny


@pytest.fixture(scope="module")
def folder(phantoms, tiny_checkpoint, tmp_path_factory):
    """Train a run with brain_crop."""
    overrides = {"num_train_epochs": 3, "learning_rate": 1e-3, "preprocessing": "brain_crop"}
    return run(
        Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path_factory.mktemp("runs") / "run", **overrides))
    )


@pytest.fixture(scope="module")
def files(phantoms):
    return sorted(phantoms.glob("*lesion/*.png"))[:9]


@pytest.mark.slow
def test_predictor_equals_pipeline(folder, files):
    predictor = Predictor.from_pretrained(folder)
    stock = pipeline("image-classification", str(folder), device="cpu")
    outputs = stock([*map(str, files)], top_k=None)
    for prediction, rows in zip(predictor.predict(files, batch_size=4), outputs, strict=True):
        assert prediction.probabilities == pytest.approx({row["label"]: row["score"] for row in rows}, abs=1e-5)
        assert prediction.label == rows[0]["label"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_decisions_sets_and_ood_scores_match_run(folder, phantoms):
    result = json.loads((folder / "results.json").read_text())
    rows = pd.read_csv(folder / "splits.csv").query("split == 'test'")
    predictions = Predictor.from_pretrained(folder).predict([phantoms / path for path in rows["path"]])
    decided = np.array([prediction.decision for prediction in predictions])
    assert (decided == rows["label"]).mean() == result["metrics"]["accuracy"]["value"]
    held = [label in p.candidates for label, p in zip(rows["label"], predictions, strict=True)]
    assert np.mean(held) == result["conformal"]["coverage"]["value"]
    unsure = [len(prediction.candidates) != 1 for prediction in predictions]
    assert ["uncertain" in prediction.reasons for prediction in predictions] == unsure
    far = np.mean([prediction.outlier > 1 for prediction in predictions])
    assert far == result["outliers"]["test"]["value"]


def test_chest_is_out_of_distribution_for_brains(folder, tmp_path):
    chests = write_phantoms(tmp_path / "chests", "chest", patients=3, images=1, size=64)
    predictions = Predictor.from_pretrained(folder).predict(sorted(chests.glob("[no]*/*.png")))
    assert predictions
    assert all("unlike the training images" in prediction.reasons for prediction in predictions)
    assert all(prediction.abstain for prediction in predictions)


def test_all_source_types_give_equal_predictions(folder, files, tmp_path):
    predictor, path = Predictor.from_pretrained(folder), files[0]
    image = Image.open(path)
    pixels = np.asarray(image.convert("RGB"))
    deep = make_dicom(pixels[..., 0].astype(np.uint16) * 16, WindowCenter=2040, WindowWidth=4080)
    slice_ = save_dicom(deep, tmp_path / "slice.dcm")
    predictions = predictor.predict([path, str(path), path.read_bytes(), image, pixels, pixels[..., 0]])
    assert len({tuple(prediction.probabilities.values()) for prediction in predictions}) == 1
    assert [prediction.name for prediction in predictions] == [str(path), str(path), "#2", "#3", "#4", "#5"]
    (deep,) = predictor.predict(slice_)
    assert deep.probabilities == pytest.approx(predictions[0].probabilities, abs=0.02)
    assert not deep.error
    assert len(predictor.predict(path.parent)) == len([*path.parent.iterdir()])
    bad = [b"", tmp_path / "nothing.png", pixels.astype(np.float32), Image.new("RGB", (0, 5)), path]
    results = predictor.predict(bad)
    assert [bool(prediction.error) for prediction in results] == [True, True, True, True, False]
    assert results[0].decision is None
    assert predictor.predict([]) == []


def test_foreign_hub_model_gives_probabilities_only(hub, files, tmp_path):
    """A model without thresholds, conformal sets and out-of-distribution scorer returns probabilities alone."""
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
                       patch_size=16, num_labels=3)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    HfApi().create_repo("ci-user/stock")
    HfApi().upload_folder(repo_id="ci-user/stock", folder_path=tmp_path)
    predictor = Predictor.from_pretrained("ci-user/stock")
    (predictions,) = predictor.predict(files[0])
    assert len(predictor.revision) == 40
    assert set(predictions.probabilities) == {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert predictions.decision == predictions.label
    assert (predictions.candidates, predictions.outlier, predictions.reasons) == (None, None, ())
    for source in ("ci-user/nobody", tmp_path / "nothing"):
        with pytest.raises(MedtlError, match="can't be loaded"):
            Predictor.from_pretrained(source)


def test_published_run_keeps_decisions(hub, folder, files):
    push(folder, "ci-user/decides", waive=WAIVED)
    local, published = (Predictor.from_pretrained(name).predict(files) for name in (folder, "ci-user/decides"))
    assert local == published
    assert local[0].outlier is not None


def test_missing_ood_file_raises_if_configured(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    (copy / "outliers.safetensors").unlink()
    with pytest.raises(MedtlError, match=r"outliers\.safetensors"):
        Predictor.from_pretrained(copy)


def test_masks_equal_postprocessed_pipeline(tmp_path):
    model, processor = build_tiny(labels=("background", "left", "right"))
    model.config.update({"postprocessing": {"largest_components": 1}})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 110, 3), dtype=np.uint8))
    (predictions,) = Predictor.from_pretrained(tmp_path).predict(image)
    assert predictions.mask.shape == (75, 110)
    raw = np.zeros((75, 110), np.uint8)
    for row in pipeline("image-segmentation", str(tmp_path), device="cpu")(image):
        raw[np.asarray(row["mask"]) > 0] = model.config.label2id[row["label"]]
    from hf_medtl.evaluation.postprocessing import postprocess

    assert np.array_equal(predictions.mask, postprocess(raw, {"largest_components": 1}))
    assert predictions.area == {name: (predictions.mask == i).mean() for i, name in ((1, "left"), (2, "right"))}


def test_tta_and_dropout_give_means_and_spread(folder, files, tmp_path):
    predictor = Predictor.from_pretrained(folder)
    plain, turned = (predictor.predict(files, tta=number) for number in (0, 2))
    assert all(p.spread is None for p in plain)
    assert all(p.spread > 0 for p in turned)
    assert [p.outlier for p in turned] == [p.outlier for p in plain]  # computed from the plain image
    # Computed by hand: the mean over the image and its rotations by 5° each way.
    from torchvision.transforms.v2.functional import affine, pad

    pixels = predictor.processor([Image.open(path).convert("RGB") for path in files], return_tensors="pt").pixel_values
    views = [pixels, *(affine(pad(pixels, [20], padding_mode="edge"), angle, [0, 0], 1.0, [0.0, 0.0],
                             interpolation=2)[..., 20:-20, 20:-20] for angle in (5, -5))]  # fmt: skip
    with torch.no_grad():
        probabilities = torch.stack([predictor.model(pixel_values=x).logits.softmax(dim=1) for x in views])
    expected = dict(zip(predictor.labels, probabilities.mean(dim=0)[0].tolist(), strict=True))
    assert turned[0].probabilities == pytest.approx(expected, abs=1e-3)
    best = int(probabilities.mean(dim=0)[0].argmax())
    assert turned[0].spread == pytest.approx(float(probabilities[:, 0, best].std()), abs=1e-3)
    with pytest.raises(MedtlError, match="0 to 8 views"):
        predictor.predict(files, tta=9)
    predictor.config.augmentation = "brain"  # trained with flipped images: the first copy is flipped
    (mirrored,) = predictor.predict(files[0], tta=1)
    both = predictor.predict([files[0], ImageOps.mirror(Image.open(files[0]))])
    mean = np.mean([p.probabilities["lesion"] for p in both])
    # The crop box comes from the image before flipping.
    assert mirrored.probabilities["lesion"] == pytest.approx(mean, abs=0.02)
    drops, never = (
        Predictor(
            ViTForImageClassification(
                ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                          image_size=32, patch_size=16, hidden_dropout_prob=rate)),
            ViTImageProcessor(size={"height": 32, "width": 32}),
        ) for rate in (0.5, 0.0)
    )  # fmt: skip
    with pytest.raises(MedtlError, match="no dropout"):
        never.predict(files, mc_dropout=2)
    assert all(p.spread > 0 for p in drops.predict(files, mc_dropout=3))
    assert drops.predict(files) == drops.predict(files)


def test_tta_masks_are_mapped_back(tmp_path):
    """A network that segments bright pixels must give the same mask with rotated views."""
    model, processor = build_tiny(labels=("background", "bright"))

    class BrightForSemanticSegmentation(torch.nn.Module):
        config, device = model.config, torch.device("cpu")

        def forward(self, pixel_values):
            return SimpleNamespace(logits=torch.stack([-pixel_values.mean(1), pixel_values.mean(1)], 1) * 9)

    pixels = np.zeros((96, 96), np.uint8)
    pixels[20:40, 50:80] = 255
    predictor = Predictor(BrightForSemanticSegmentation(), processor)
    plain, turned = (predictor.predict(pixels, tta=number, explain="uncertainty")[0] for number in (0, 8))
    assert (plain.mask == turned.mask).mean() > 0.97
    assert turned.mask[25:35, 55:75].all()
    assert turned.map.shape == (96, 96)
    assert turned.map[19:41, 49:81].mean() > 3 * turned.map[60:].mean()


def test_heatmaps_equal_explain(folder, files):
    predictor = Predictor.from_pretrained(folder)
    predictions = predictor.predict(files, batch_size=4, explain="gradcam")
    images = [Image.open(path).convert("RGB") for path in files]
    for prediction, expected in zip(predictions, explain(predictor.model, predictor.processor, images), strict=True):
        assert prediction.label == expected.label
        np.testing.assert_allclose(prediction.map, expected.map, atol=1e-4)
    with pytest.raises(MedtlError, match="Known: gradcam"):
        predictor.predict(files, explain="tea leaves")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_command_writes_row_per_image(process_pool, folder, files, suffix, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in files[:4]:
        Image.open(path).save(images / path.name)
    (images / "broken.png").write_bytes(b"PNG")
    out = tmp_path / f"out.{suffix}"
    process = process_pool.run_script(COMMAND, "predict", folder, images, "--out", out, "--batch_size", "2")
    assert process.returncode == 1, process.stderr
    assert "5 images, 1 of them with an error" in process.stdout
    table = pd.read_json(out, lines=True) if suffix == "jsonl" else getattr(pd, f"read_{suffix}")(out)
    labels = Predictor.from_pretrained(folder).labels
    probabilities = [f"p_{label}" for label in labels]
    assert list(table) == ["path", "label", *probabilities, "decision", "abstain", "reason", "error"]
    assert table["path"].tolist() == sorted(map(str, images.iterdir()))
    assert table["error"].fillna("").astype(bool).tolist() == ["broken" in path for path in table["path"]]
    assert [*tmp_path.glob("*part*")] == []
    again = process_pool.run_script(COMMAND, "predict", folder, images, "--out", out)
    assert again.returncode == 1
    assert "already exists" in again.stderr


@pytest.mark.slow
def test_command_draws_overlays(process_pool, folder, files, tmp_path):
    words = ("--out", tmp_path / "out.csv", "--maps", tmp_path / "maps", "--explain", "eigencam", "--tta", 1)
    process = process_pool.run_script(COMMAND, "predict", folder, *files[:2], *words)
    assert process.returncode == 0, process.stderr
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [f"{path.name}.png" for path in files[:2]]
    over, plain = (Image.open(path) for path in (tmp_path / "maps" / f"{files[0].name}.png", files[0]))
    assert over.size == plain.size
    assert np.ptp(np.asarray(over), axis=2).max() > 30  # colour over grey
    assert (pd.read_csv(tmp_path / "out.csv")["spread"] > 0).all()
    words = ("--out", tmp_path / "other.csv", "--maps", tmp_path / "maps")
    process = process_pool.run_script(COMMAND, "predict", folder, files[0], *words)
    assert process.returncode == 1
    assert "must be given together" in process.stderr


@pytest.mark.slow
def test_command_prints_prediction(process_pool, folder, files):
    process = process_pool.run_script(COMMAND, "predict", folder, files[0])
    assert process.returncode == 0, process.stderr
    assert f"{files[0]}: " in process.stdout
    assert "not for diagnosis" in process.stdout


@pytest.mark.slow
def test_killed_and_resumed_table_has_each_image_once(process_pool, folder, files, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    content = files[0].read_bytes()
    for i in range(400):
        (images / f"{i:03}.png").write_bytes(content)
    out = tmp_path / "out.csv"
    command = [COMMAND, "predict", folder, images, "--out", out, "--batch_size", "4"]
    for _ in range(2):
        process = process_pool.start_script(*command)
        part = tmp_path / "out.csv.part-0.jsonl"
        before = len(part.read_bytes()) if part.exists() else 0
        while process.poll() is None and not (part.exists() and len(part.read_bytes()) > before + 2000):
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not out.exists()
        with part.open("a") as stream:
            stream.write('{"path": "torn')
    resumed = process_pool.run_script(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert "images are already done" in resumed.stderr
    assert pd.read_csv(out)["path"].tolist() == sorted(map(str, images.iterdir()))


@pytest.mark.slow
def test_thousands_of_images_killed_twice_in_constant_memory(process_pool, tiny_checkpoint, tmp_path):
    images, out, part = tmp_path / "images", tmp_path / "out.csv", tmp_path / "out.csv.part-0.jsonl"
    images.mkdir()
    # If all images stayed in memory, the last 4,000 would take 750 MiB.
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "image.png")
    for i in range(5000):
        os.link(tmp_path / "image.png", images / f"{i:04}.png")
    command = [COMMAND, "predict", tiny_checkpoint("vit"), images, "--out", out, "--batch_size", "25"]

    def started_until(count: int) -> ForkedProcess:
        """Start the command and wait until it has predicted `count` more images."""
        goal = rows() + count
        process = process_pool.start_script(*command)
        while process.poll() is None and rows() < goal:
            time.sleep(0.02)
        assert process.returncode is None
        return process

    def rows() -> int:
        return part.read_bytes().count(b"\n") if part.exists() else 0

    def peak(pid: int) -> int:
        """Return the peak memory so far in KiB; 0 if the process has ended."""
        return int((Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split() or ["0"])[0])

    for _ in range(2):
        process = started_until(count=300)
        process.kill()
        process.wait()
        assert not out.exists()
    process = started_until(count=1000)
    early = late = peak(process.pid)
    while process.poll() is None:  # TRAP: rusage of the child includes the parent's peak memory
        late = max(late, peak(process.pid))
        time.sleep(0.05)
    assert process.returncode == 0
    assert pd.read_csv(out)["path"].tolist() == sorted(map(str, images.iterdir()))
    assert 0 < late < 1.15 * early, f"{early} KiB after 1,000 images, {late} at the end"


@pytest.mark.slow
def test_parts_of_another_model_raise(process_pool, folder, files, tmp_path):
    out = tmp_path / "out.csv"
    (tmp_path / "out.csv.part-0.jsonl").write_text(json.dumps({"model": "other@1"}) + "\n")
    process = process_pool.run_script(COMMAND, "predict", folder, files[0], "--out", out)
    assert process.returncode == 1
    assert "was started with other@1" in process.stderr
