"""Embeddings: the numbers of the model's own features, columns of the data, and rows of images that can't be read."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    Dinov2Model,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTImageProcessor,
)
from typer.testing import CliRunner

from hf_medtl import MedtlError, Predictor, read_image
from hf_medtl.cli.app import app
from hf_medtl.runs.batch_predict import predict_files
from hf_medtl.runs.embed import embed_images, find_images, load_embedder
from tests.support.image_files import write_noise_image
from tests.support.tiny_models import build_tiny, save_foreign_classifier

STATISTICS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_foreign_classifier(tmp_path_factory.mktemp("model"), ("normal", "ill"))


@pytest.fixture
def images(tmp_path):
    return [write_noise_image(tmp_path / "scans" / f"{seed}.png", seed) for seed in range(3)]


def save_timm_body(folder):
    cfg = {"input_size": [3, 64, 64], "mean": STATISTICS["image_mean"], "std": STATISTICS["image_std"]}
    TimmWrapperModel(TimmWrapperConfig(architecture="test_resnet", pretrained_cfg=cfg)).save_pretrained(folder)
    return folder


def test_embedding_is_the_input_of_the_head(classifier, images, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(classifier).eval()
    inputs: list[torch.Tensor] = []
    model.classifier.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    processor = ViTImageProcessor.from_pretrained(classifier)
    with torch.no_grad():
        model(**processor([read_image(path) for path in images], return_tensors="pt"))
    assert embed_images(str(classifier), [*map(str, images)], tmp_path / "x.parquet") == (3, 0)
    table = pd.read_parquet(tmp_path / "x.parquet")
    assert list(table) == ["path", "embedding", "error"]
    assert table["path"].tolist() == [*map(str, images)]
    assert table["embedding"][0].dtype == np.float32
    np.testing.assert_allclose(np.stack(table["embedding"]), inputs[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_encoder_without_a_head_gives_its_pooled_output(library, tiny_checkpoint, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hf_medtl")
    timm = library == "timm"
    folder = save_timm_body(tmp_path / "body") if timm else tiny_checkpoint("rad-dino")
    # timm resizes by another rule, which is tested elsewhere.
    size = (64, 64) if timm else (40, 48)
    images = [write_noise_image(tmp_path / "scans" / f"{seed}.png", seed, size) for seed in range(3)]
    side = 64 if timm else 32
    processor = ViTImageProcessor(size={"height": side, "width": side}, resample=3, **STATISTICS)
    pixels = processor([read_image(path) for path in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = (TimmWrapperModel if timm else Dinov2Model).from_pretrained(folder).eval()(pixels).pooler_output
    assert embed_images(str(folder), [str(images[0].parent)], tmp_path / "x.parquet") == (3, 0)
    assert "The head is not used" in caplog.text
    assert "LABEL_0" not in caplog.text
    values = np.stack(pd.read_parquet(tmp_path / "x.parquet")["embedding"])
    np.testing.assert_allclose(values, expected.flatten(1).numpy(), atol=1e-6)


def test_labels_groups_and_splits_are_columns_and_a_damaged_image_is_a_row(classifier, tmp_path):
    rows = [("a/1.png", "Ann Lee", "train"), ("b/2.png", "Ann Lee", "train"), ("a/3.png", "Bo Ray", "test"),
            ("b/4.png", "Bo Ray", "test")]  # fmt: skip
    for seed, (name, *_) in enumerate(rows):
        write_noise_image(tmp_path / "data" / name, seed)
    (tmp_path / "data" / "b" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    listing = pd.DataFrame(rows, columns=["file_name", "patient", "split"])
    listing.to_csv(tmp_path / "data" / "metadata.csv", index=False)
    arguments = ["embed", str(classifier), str(tmp_path / "data"), "--out", str(tmp_path / "x.parquet")]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "4 images, 1 of them with an error" in result.output) == (1, True), result.output
    table = pd.read_parquet(tmp_path / "x.parquet")
    assert list(table) == ["path", "label", "group", "split", "embedding", "error"]
    facts = [tuple(row) for row in table[["label", "group", "split"]].itertuples(index=False)]
    assert facts == [("a", "g0001", "train"), ("a", "g0002", "test"), ("b", "g0001", "train"), ("b", "g0002", "test")]
    assert table["embedding"].notna().tolist() == [True, True, True, False]
    assert [bool(error) for error in table["error"]] == [False, False, False, True]
    assert not any(name in table.to_csv() for name in ("Ann", "Bo Ray"))
    # A table, whose columns may have other names, and a dataset by name.
    listing.assign(finding=["x", "y", "x", "y"]).to_csv(tmp_path / "data" / "list.csv", index=False)
    _, known = find_images([str(tmp_path / "data" / "list.csv")], columns={"label": "finding"})
    assert [fact["label"] for fact in known.values()] == ["x", "x", "y", "y"]
    assert find_images(["imagefolder"], tmp_path / "data")[1].keys() == known.keys()
    _, known = find_images([str(tmp_path / "data" / "metadata.csv")])
    assert [*known.values()][:2] == [{"group": "g0001", "split": "train"}, {"group": "g0002", "split": "test"}]


def test_folder_without_labels_has_no_columns_of_them(images, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hf_medtl")
    assert find_images([str(tmp_path / "scans")]) == ([tmp_path / "scans"], {})
    assert "scans has no labels to write" in caplog.text
    with pytest.raises(MedtlError, match="--data_dir is for one dataset"):
        find_images([str(images[0])], tmp_path)
    with pytest.raises(MedtlError, match="--columns is for a table"):
        find_images([str(images[0])], columns={"label": "finding"})
    missing = [str(tmp_path / "scans" / "missing")]  # is not looked up on the Hub
    assert find_images(missing) == ([tmp_path / "scans" / "missing"], {})


def test_embeddings_are_not_mixed_with_predictions_or_other_networks(classifier, images, tmp_path):
    out = tmp_path / "x.jsonl"
    part = tmp_path / "x.jsonl.part-0.jsonl"
    predictor = load_embedder(str(classifier))
    part.write_text(f'{{"model": "{classifier}@{predictor.revision}"}}\n', encoding="utf-8")
    with pytest.raises(MedtlError, match="was started with"):
        embed_images(str(classifier), [*map(str, images)], out)
    part.unlink()
    assert embed_images(str(classifier), [*map(str, images)], out) == (3, 0)
    values = pd.read_json(out, lines=True)["embedding"]
    assert [len(row) for row in values] == [32] * 3
    table = out.read_bytes()
    part.write_text(f'{{"model": "{classifier}@{predictor.revision}, embedding"}}\n', encoding="utf-8")
    assert embed_images(str(classifier), [*map(str, images)], out) == (3, 0)  # killed before its parts were removed
    assert (out.read_bytes(), part.exists()) == (table, False)
    with pytest.raises(MedtlError, match=r"--out must end in .parquet or .jsonl"):
        embed_images(str(classifier), [*map(str, images)], tmp_path / "x.csv")
    with pytest.raises(MedtlError, match="has no single head"):
        predict_files(Predictor(*build_tiny()), images, tmp_path / "y.parquet", "m", embed=True)
