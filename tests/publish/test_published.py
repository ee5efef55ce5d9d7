"""Runs as earlier versions published them still load, and answer as they did: see published/README.md.

python tests/test_published.py adds those of this version.
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerImageProcessor,
    ViTConfig,
    ViTImageProcessor,
)

import hf_medtl
from hf_medtl import Predictor, Recipe, run
from hf_medtl.data.phantoms import write_phantoms
from hf_medtl.models.cnn import MedicalCnnConfig
from tests.support.commands import options, script
from tests.support.segmentation_runs import recipe

PUBLISHED = Path(__file__).with_name("published")
RUNS = sorted(path.parent for path in PUBLISHED.glob("*/*/config.json"))
KEPT = ("config.json", "model.safetensors", "outliers.safetensors", "preprocessor_config.json", "processor.py",
        "cnn.py", "results.json", "recipe.yaml", "predictions.csv")  # fmt: skip
STRANGER = """
import json, sys
sys.modules["hf_medtl"] = None
import numpy as np
from transformers import pipeline
answers = {}
for folder, *pictures in json.load(sys.stdin):
    masks = "masks" in folder
    ask = pipeline("image-segmentation" if masks else "image-classification", folder, trust_remote_code=True)
    answers[folder] = [
        {its["label"]: np.asarray(its["mask"]).tolist() if masks else its["score"] for its in ask(picture)}
        for picture in pictures
    ]
print(json.dumps(answers))
"""


def publish(folder: Path) -> None:
    """Train what is kept of this version."""
    backbones = {
        "vit": ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=8,
        ),
        "cnn": MedicalCnnConfig(widths=(8, 16), image_size=32),
        "masks": SegformerConfig(
            hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, sr_ratios=[1] * 4, decoder_hidden_size=8
        ),
    }
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        data = {kind: write_phantoms(place / kind, kind, patients=48, images=2, size=64) for kind in ("brain", "chest")}
        for name, config in backbones.items():
            torch.manual_seed(0)
            config.architectures = []
            size = {"size": {"height": 64, "width": 64} if name == "masks" else {"height": 32, "width": 32}}
            auto = AutoModelForSemanticSegmentation if name == "masks" else AutoModelForImageClassification
            auto.from_config(config).save_pretrained(place / f"tiny-{name}")
            kind = SegformerImageProcessor if name == "masks" else ViTImageProcessor
            kind(**size).save_pretrained(place / f"tiny-{name}")
            if name == "masks":
                none = {"encoder": None, "encoder_weights": "imagenet", "image_size": None}
                more = {"learning_rate": 1e-2, "num_train_epochs": 20, "largest_components": 2, **none}
                wishes = recipe(data["chest"], place / name, model_name_or_path=str(place / f"tiny-{name}"), **more)
            else:
                more = {
                    "learning_rate": 3e-4 if name == "vit" else 3e-3,
                    "num_train_epochs": 60,
                    "conformal_alpha": 0.3,
                }
                more |= {"load_best_model_at_end": False, "early_stopping_patience": 0}
                wishes = Recipe(**options(data["brain"], place / f"tiny-{name}", place / name, **more))
            run(wishes)
            (folder / name).mkdir(parents=True)
            for part in KEPT:
                if (place / name / part).exists():
                    shutil.copy(place / name / part, folder / name)
            source = data["chest" if name == "masks" else "brain"]
            for picture in pd.read_csv(place / name / "predictions.csv")["image_id"].iloc[[0, -1]]:
                shutil.copy(source / picture, folder / name)
                if name == "masks":
                    mask = source / "masks" / Path(picture).name
                    shutil.copy(mask, folder / name / mask.with_suffix(".mask.png").name)


def rows_of(folder: Path) -> list[tuple[Path, pd.Series]]:
    """The pictures beside a run, and their rows of predictions.csv."""
    rows = pd.read_csv(folder / "predictions.csv")
    here = rows[[(folder / Path(name).name).exists() for name in rows["image_id"]]]
    assert len(here) == 2
    return [(folder / Path(row["image_id"]).name, row) for _, row in here.iterrows()]


def dice(found: np.ndarray, picture: Path) -> float:
    """Of a mask and the one beside the picture."""
    true = np.asarray(Image.open(picture.with_suffix(".mask.png"))) > 0
    return 2 * (found & true).sum() / (found.sum() + true.sum())


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_predictor_answers_as_it_did(folder):
    predictor = Predictor.from_pretrained(folder, device="cpu")
    results = json.loads((folder / "results.json").read_text())
    assert predictor.config.hf_medtl_version == results["environment"]["packages"]["hf_medtl"] == folder.parent.name
    for path, row in rows_of(folder):
        answer = predictor.predict(path)[0]
        if predictor.is_segmentation:
            assert dice(answer.mask > 0, path) == pytest.approx(row["dice"], abs=1e-3)
            continue
        assert answer.probabilities == pytest.approx({name: row[f"p_{name}"] for name in results["labels"]}, abs=1e-4)
        positive = results["positive_label"]
        assert (answer.decision == positive) == (row[f"p_{positive}"] >= results["threshold"])
        assert answer.candidates == tuple(
            name for name in results["labels"] if row[f"p_{name}"] >= results["conformal"]["lowest"][name]
        )
        assert answer.outlier is not None


def test_strangers_get_what_they_got():
    jobs = [[str(folder), *(str(path) for path, _ in rows_of(folder))] for folder in RUNS]
    done = script(sys.executable, "-I", "-c", STRANGER, input=json.dumps(jobs))
    assert done.returncode == 0, done.stderr
    for folder, answers in json.loads(done.stdout.splitlines()[-1]).items():
        for (path, row), answer in zip(rows_of(Path(folder)), answers, strict=True):
            if path.parent.name == "masks":
                assert dice(np.array(answer["lungs"]) > 0, path) == pytest.approx(row["raw_dice"], abs=1e-3)
                continue
            assert answer == pytest.approx({name: row[f"p_{name}"] for name in answer}, abs=1e-4)


if __name__ == "__main__":
    publish(PUBLISHED / hf_medtl.__version__)
