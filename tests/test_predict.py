"""Predictor: the numbers of stock pipeline(), and everything that the folder says of decisions."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
from conftest import COMMAND, options, script
from huggingface_hub import HfApi
from PIL import Image
from test_dicom import dicom
from test_dicom import save as save_dicom
from test_smp import build_tiny
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from hf_medtl import MedtlError, Predictor, Recipe, run
from hf_medtl.data.phantoms import write
from hf_medtl.publish.hub import push


@pytest.fixture(scope="module")
def folder(phantoms, tiny, tmp_path_factory):
    """A finished run with cropped brains."""
    more = {"num_train_epochs": 3, "learning_rate": 1e-3, "preprocessing": "brain_crop"}
    return run(Recipe(**options(phantoms, tiny("vit"), tmp_path_factory.mktemp("runs") / "run", **more)))


@pytest.fixture(scope="module")
def files(phantoms):
    return sorted(phantoms.glob("*lesion/*.png"))[:9]


def test_it_gives_what_pipeline_gives(folder, files):
    predictor = Predictor.from_pretrained(folder)
    stock = pipeline("image-classification", str(folder), device="cpu")
    answers = stock([*map(str, files)], top_k=None)
    for prediction, answer in zip(predictor.predict(files, batch_size=4), answers, strict=True):
        assert prediction.probabilities == pytest.approx({row["label"]: row["score"] for row in answer}, abs=1e-5)
        assert prediction.label == answer[0]["label"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_decisions_sets_and_outliers_are_those_of_the_run(folder, phantoms):
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


def test_a_chest_is_unlike_the_brains(folder, tmp_path):
    chests = write(tmp_path / "chests", "chest", patients=3, pictures=1, size=64)
    found = Predictor.from_pretrained(folder).predict(sorted(chests.glob("[no]*/*.png")))
    assert found
    assert all("unlike the training pictures" in prediction.reasons for prediction in found)
    assert all(prediction.abstain for prediction in found)


def test_any_kind_of_source(folder, files, tmp_path):
    predictor, path = Predictor.from_pretrained(folder), files[0]
    picture = Image.open(path)
    pixels = np.asarray(picture.convert("RGB"))
    deep = dicom(pixels[..., 0].astype(np.uint16) * 16, WindowCenter=2040, WindowWidth=4080)
    slice_ = save_dicom(deep, tmp_path / "slice.dcm")
    found = predictor.predict([path, str(path), path.read_bytes(), picture, pixels, pixels[..., 0]])
    assert len({tuple(prediction.probabilities.values()) for prediction in found}) == 1
    assert [prediction.name for prediction in found] == [str(path), str(path), "#2", "#3", "#4", "#5"]
    (deep,) = predictor.predict(slice_)
    assert deep.probabilities == pytest.approx(found[0].probabilities, abs=0.02)
    assert not deep.error
    assert len(predictor.predict(path.parent)) == len([*path.parent.iterdir()])
    bad = [b"", tmp_path / "nothing.png", pixels.astype(np.float32), Image.new("I;16", (8, 8)), path]
    answers = predictor.predict(bad)
    assert [bool(prediction.error) for prediction in answers] == [True, True, True, True, False]
    assert answers[0].decision is None
    assert predictor.predict([]) == []


def test_any_model_of_the_hub(hub, files, tmp_path):
    """Without thresholds, sets and outliers: probabilities alone."""
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
                       patch_size=16, num_labels=3)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    HfApi().create_repo("ci-user/stock")
    HfApi().upload_folder(repo_id="ci-user/stock", folder_path=tmp_path)
    predictor = Predictor.from_pretrained("ci-user/stock")
    (found,) = predictor.predict(files[0])
    assert len(predictor.revision) == 40
    assert set(found.probabilities) == {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert found.decision == found.label
    assert (found.candidates, found.outlier, found.reasons) == (None, None, ())
    for wrong in ("ci-user/nobody", tmp_path / "nothing"):
        with pytest.raises(MedtlError, match="can't be loaded"):
            Predictor.from_pretrained(wrong)


def test_a_published_run_keeps_its_decisions(hub, folder, files):
    push(folder, "ci-user/decides")
    here, there = (Predictor.from_pretrained(name).predict(files) for name in (folder, "ci-user/decides"))
    assert here == there
    assert here[0].outlier is not None


def test_masks_are_those_of_pipeline_after_postprocessing(tmp_path):
    model, processor = build_tiny(labels=("background", "left", "right"))
    model.config.update({"postprocessing": {"largest_components": 1}})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 110, 3), dtype=np.uint8))
    (found,) = Predictor.from_pretrained(tmp_path).predict(picture)
    assert found.mask.shape == (75, 110)
    raw = np.zeros((75, 110), np.uint8)
    for part in pipeline("image-segmentation", str(tmp_path), device="cpu")(picture):
        raw[np.asarray(part["mask"]) > 0] = model.config.label2id[part["label"]]
    from hf_medtl.evaluation.postprocessing import postprocess

    assert np.array_equal(found.mask, postprocess(raw, {"largest_components": 1}))
    assert found.area == {name: (found.mask == i).mean() for i, name in ((1, "left"), (2, "right"))}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_command_writes_a_row_a_picture(folder, files, suffix, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in files[:4]:
        Image.open(path).save(pictures / path.name)
    (pictures / "broken.png").write_bytes(b"PNG")
    out = tmp_path / f"out.{suffix}"
    done = script(COMMAND, "predict", folder, pictures, "--out", out, "--batch_size", "2")
    assert done.returncode == 1, done.stderr
    assert "5 pictures, 1 of them with an error" in done.stdout
    table = pd.read_json(out, lines=True) if suffix == "jsonl" else getattr(pd, f"read_{suffix}")(out)
    labels = Predictor.from_pretrained(folder).labels
    chances = [f"p_{label}" for label in labels]
    assert list(table) == ["path", "label", *chances, "decision", "abstain", "reason", "error"]
    assert table["path"].tolist() == sorted(map(str, pictures.iterdir()))
    assert table["error"].fillna("").astype(bool).tolist() == ["broken" in path for path in table["path"]]
    assert [*tmp_path.glob("*part*")] == []
    again = script(COMMAND, "predict", folder, pictures, "--out", out)
    assert again.returncode == 1
    assert "is there already" in again.stderr


def test_the_command_prints(folder, files):
    done = script(COMMAND, "predict", folder, files[0])
    assert done.returncode == 0, done.stderr
    assert f"{files[0]}: " in done.stdout
    assert "not for diagnosis" in done.stdout


def test_killed_and_resumed_has_each_picture_once(folder, files, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    content = files[0].read_bytes()
    for i in range(400):
        (pictures / f"{i:03}.png").write_bytes(content)
    out = tmp_path / "out.csv"
    command = [COMMAND, "predict", folder, pictures, "--out", out, "--batch_size", "4"]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part, before = tmp_path / "out.csv.part-0.jsonl", 0
        before = len(part.read_bytes()) if part.exists() else 0
        while process.poll() is None and not (part.exists() and len(part.read_bytes()) > before + 2000):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists()
        with part.open("a") as stream:
            stream.write('{"path": "torn')
    done = script(*command)
    assert done.returncode == 0, done.stderr
    assert "pictures are done already" in done.stderr
    assert pd.read_csv(out)["path"].tolist() == sorted(map(str, pictures.iterdir()))


def test_parts_of_another_model_are_refused(folder, files, tmp_path):
    out = tmp_path / "out.csv"
    (tmp_path / "out.csv.part-0.jsonl").write_text(json.dumps({"model": "other@1"}) + "\n")
    done = script(COMMAND, "predict", folder, files[0], "--out", out)
    assert done.returncode == 1
    assert "was begun with other@1" in done.stderr
