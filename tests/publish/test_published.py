"""Runs published by earlier versions still load and give the same predictions: see published/README.md.

`python tests/publish/test_published.py` adds runs of this version.
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import hf_medtl
from hf_medtl import Predictor, Recipe, run
from hf_medtl.data.phantoms import write_phantoms
from tests.support.commands import options, run_command
from tests.support.segmentation_runs import segmentation_recipe
from tests.support.tiny_models import save_segformer, save_tiny

PUBLISHED = Path(__file__).with_name("published")
RUNS = sorted(path.parent for path in PUBLISHED.glob("*/*/config.json"))
STORED_FILES = ("config.json", "model.safetensors", "outliers.safetensors", "preprocessor_config.json", "processor.py",
        "cnn.py", "results.json", "recipe.yaml", "predictions.csv")  # fmt: skip
STOCK_CODE = """
import json, sys
sys.modules["hf_medtl"] = None
import numpy as np
from transformers import pipeline
outputs = {}
for folder, *images in json.load(sys.stdin):
    masks = "masks" in folder
    predict = pipeline("image-segmentation" if masks else "image-classification", folder, trust_remote_code=True)
    outputs[folder] = [
        {row["label"]: np.asarray(row["mask"]).tolist() if masks else row["score"] for row in predict(image)}
        for image in images
    ]
print(json.dumps(outputs))
"""


def publish(folder: Path) -> None:
    """Train the runs that are stored for this version."""
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = {kind: write_phantoms(work / kind, kind, patients=48, images=2, size=64) for kind in ("brain", "chest")}
        last_weights = {"load_best_model_at_end": False, "early_stopping_patience": 0}
        no_encoder = {"encoder": None, "encoder_weights": "imagenet", "image_size": None}
        overrides = {
            "vit": {"learning_rate": 3e-4, "num_train_epochs": 60, "conformal_alpha": 0.3, **last_weights},
            "cnn": {"learning_rate": 3e-3, "num_train_epochs": 60, "conformal_alpha": 0.3, **last_weights},
            "masks": {"learning_rate": 1e-2, "num_train_epochs": 20, "largest_components": 2, **no_encoder},
        }
        for name, values in overrides.items():
            backbone, source = work / f"tiny-{name}", data["chest" if name == "masks" else "brain"]
            if name == "masks":
                values["model_name_or_path"] = str(save_segformer(backbone))
                run(segmentation_recipe(source, work / name, **values))
            else:
                run(Recipe(**options(source, save_tiny(name, backbone), work / name, **values)))
            (folder / name).mkdir(parents=True)
            for file_name in STORED_FILES:
                if (work / name / file_name).exists():
                    shutil.copy(work / name / file_name, folder / name)
            for image in pd.read_csv(work / name / "predictions.csv")["image_id"].iloc[[0, -1]]:
                shutil.copy(source / image, folder / name)
                if name == "masks":
                    mask = source / "masks" / Path(image).name
                    shutil.copy(mask, folder / name / mask.with_suffix(".mask.png").name)


def stored_images(folder: Path) -> list[tuple[Path, pd.Series]]:
    """Return the images stored beside a run, with their rows of predictions.csv."""
    rows = pd.read_csv(folder / "predictions.csv")
    stored = rows[[(folder / Path(name).name).exists() for name in rows["image_id"]]]
    assert len(stored) == 2
    return [(folder / Path(row["image_id"]).name, row) for _, row in stored.iterrows()]


def dice(predicted: np.ndarray, image: Path) -> float:
    """Return the Dice score of a mask and the reference mask stored beside the image."""
    true = np.asarray(Image.open(image.with_suffix(".mask.png"))) > 0
    return 2 * (predicted & true).sum() / (predicted.sum() + true.sum())


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_predictor_gives_the_published_predictions(folder):
    predictor = Predictor.from_pretrained(folder, device="cpu")
    results = json.loads((folder / "results.json").read_text())
    assert predictor.config.hf_medtl_version == results["environment"]["packages"]["hf_medtl"] == folder.parent.name
    for path, row in stored_images(folder):
        prediction = predictor.predict(path)[0]
        if predictor.is_segmentation:
            assert dice(prediction.mask > 0, path) == pytest.approx(row["dice"], abs=1e-3)
            continue
        assert prediction.probabilities == pytest.approx(
            {name: row[f"p_{name}"] for name in results["labels"]}, abs=1e-4
        )
        positive = results["positive_label"]
        assert (prediction.decision == positive) == (row[f"p_{positive}"] >= results["threshold"])
        assert prediction.candidates == tuple(
            name for name in results["labels"] if row[f"p_{name}"] >= results["conformal"]["lowest"][name]
        )
        assert prediction.outlier is not None


@pytest.mark.slow
def test_stock_pipeline_gives_the_published_predictions():
    jobs = [[str(folder), *(str(path) for path, _ in stored_images(folder))] for folder in RUNS]
    process = run_command(sys.executable, "-I", "-c", STOCK_CODE, input=json.dumps(jobs))
    assert process.returncode == 0, process.stderr
    for folder, outputs in json.loads(process.stdout.splitlines()[-1]).items():
        for (path, row), output in zip(stored_images(Path(folder)), outputs, strict=True):
            if path.parent.name == "masks":
                assert dice(np.array(output["lungs"]) > 0, path) == pytest.approx(row["raw_dice"], abs=1e-3)
                continue
            assert output == pytest.approx({name: row[f"p_{name}"] for name in output}, abs=1e-4)


if __name__ == "__main__":
    publish(PUBLISHED / hf_medtl.__version__)
