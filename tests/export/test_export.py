"""Exports answer as the run does, say what they are worth, and are refused where they decide otherwise."""

import copy
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from hf_medtl import MedtlError, Predictor, Recipe, load, read_image, run
from hf_medtl.cli.main import main
from hf_medtl.data.phantoms import write_phantoms
from hf_medtl.export import export as export_module
from hf_medtl.export.export import FORMATS, Format, export_run
from hf_medtl.export.onnx import write_onnx
from hf_medtl.export.preprocessing_spec import build_preprocessing_spec
from hf_medtl.export.verification import with_inference_fn
from hf_medtl.models.ensemble import EnsembleConfig, EnsembleForImageClassification
from hf_medtl.models.heads import find_head
from hf_medtl.publish.check import check_exports
from hf_medtl.publish.hub import plan_upload
from hf_medtl.runs.ensemble import ensemble
from tests.support.commands import WAIVED, options
from tests.support.multilabel_tables import table as table_of_marks
from tests.support.tiny_models import build_tiny, save_segformer


def model_of(family: str, tiny, folder: Path) -> torch.nn.Module:
    if family == "smp":
        return build_tiny()[0]
    if family == "segformer":
        return AutoModelForSemanticSegmentation.from_pretrained(save_segformer(folder), dtype=torch.float32).eval()
    if family == "ensemble":  # whose members normalise differently
        configs = [
            AutoModelForImageClassification.from_pretrained(tiny(name)).config.to_dict() for name in ("vit", "cnn")
        ]
        third, half = [0.3] * 3, [0.5] * 3
        members = [{"config": its, "mean": mean, "std": half} for its, mean in zip(configs, (half, third), strict=True)]
        return EnsembleForImageClassification(EnsembleConfig(members, half, half, num_labels=3)).eval()
    model = AutoModelForImageClassification.from_pretrained(tiny(family), dtype=torch.float32)
    for module in model.modules():  # with statistics as after training; with those of a new one all answers are 0
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(
            pixel_values=torch.randn(8, 3, 64, 64) if family.startswith("timm") else torch.randn(8, 3, 32, 32)
        )
    return model.eval()


FAMILIES = ["vit", "swin", "timm-vit", "timm-convnext", "timm-efficientnet", "cnn", "ensemble", "smp", "segformer"]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_formats_agree_with_torch_for_any_number_of_pictures(family, tiny, tmp_path):
    model = model_of(family, tiny, tmp_path / "tiny")
    attention = model.config._attn_implementation
    size = 64 if family in ("smp", "segformer") or family.startswith("timm") else 32
    write_onnx(model, size, size, tmp_path / "model.onnx")
    assert model.config._attn_implementation == attention
    asks = []
    for its in FORMATS.values():
        (tmp_path / its.package).mkdir()
        shutil.copy(tmp_path / "model.onnx", tmp_path / its.package / "source.onnx")
        asks.append(its.load(its.write(tmp_path / its.package / "source.onnx", tmp_path / its.package), 1))
    for number in (1, 3):
        pixels = torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(number))
        with torch.inference_mode():
            wanted = model(pixel_values=pixels).logits.numpy()
        assert np.ptp(wanted) > 1e-3
        for ask in asks:
            found = ask(pixels.numpy())
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max() < 1e-4


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory) -> Path:
    """A copy of a finished run, to export."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def exported(folder, phantoms) -> dict:
    return export_run(folder, "onnx", data_dir=phantoms)[1]


def spoil(monkeypatch) -> None:
    """Let what is exported be a model of other weights."""

    def write_other(model, height, width, file):
        other = copy.deepcopy(model)
        with torch.no_grad():
            find_head(other).weight.neg_().mul_(100)
        write_onnx(other, height, width, file)

    monkeypatch.setattr(export_module, "write_onnx", write_other)


def table_of(card: Path) -> list[str]:
    return re.findall(r"^\| `export/(.*?)`", card.read_text(), flags=re.MULTILINE)


def test_an_export_says_what_it_is_worth(folder, exported, results):
    assert json.loads((folder / "export" / "onnx" / "export.json").read_text()) == exported
    assert exported["pictures"] == results["n"]
    assert exported["largest_logit_difference"] < 1e-4
    assert exported["decisions_changed"] == 0
    assert exported["torch"]["value"] == pytest.approx(results["metrics"]["roc_auc"]["value"])
    assert exported["exported"] == exported["torch"]
    assert exported["difference"]["value"] == 0
    assert min(exported["milliseconds"].values()) > 0
    assert table_of(folder / "README.md") == ["onnx"]
    assert not list((folder / "export").glob(".*"))
    assert {f"export/onnx/{name}" for name in ("model.onnx", "preprocessing.json", "export.json")} <= set(
        plan_upload(folder, WAIVED)
    )


def test_the_contract_alone_is_enough(folder, exported, phantoms):
    """Pillow, numpy and ONNX Runtime, by what is written in preprocessing.json, as a program without Python would."""
    said = json.loads((folder / "export" / "onnx" / "preprocessing.json").read_text())
    step = {its["step"]: its for its in said["steps"]}
    path = next(phantoms.glob("*lesion/*.png"))
    size = step["resize"]["width"], step["resize"]["height"]
    picture = Image.open(path).convert("RGB").resize(size, Image.Resampling[step["resize"]["resample"].upper()])
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) * step["rescale"]["factor"]
    mean, std = (np.reshape(step["normalise"][key], (3, 1, 1)) for key in ("mean", "std"))
    ask = FORMATS["onnx"].load(folder / "export" / "onnx" / said["model"], 1)
    logits = ask(((pixels - mean) / std)[None].astype(np.float32))[0]
    assert said["input"]["shape"] == ["batch", *pixels.shape]
    assert said["output"]["shape"] == ["batch", len(said["labels"])]
    found = np.exp(logits) / np.exp(logits).sum()
    wanted = Predictor.from_pretrained(folder, device="cpu").predict(path)[0]
    # torchvision rounds other than Pillow when it resizes, by up to one grey value.
    assert found == pytest.approx([wanted.probabilities[label] for label in said["labels"]], abs=0.01)
    config = json.loads((folder / "config.json").read_text())
    assert said["decision"]["threshold"] == config["threshold"]
    assert said["decision"]["conformal"] == config["conformal"]


def test_the_code_on_the_card_runs(folder, exported, phantoms, monkeypatch, tmp_path, capsys):
    (code,) = re.findall(r"```python\n(import json.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    path = next(phantoms.glob("*lesion/*.png"))
    shutil.copy(path, tmp_path / "image.png")
    (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    wanted = Predictor.from_pretrained(folder, device="cpu").predict(path)[0].probabilities
    assert eval(capsys.readouterr().out) == pytest.approx(wanted, abs=1e-5)


def test_other_formats_and_8_bits_get_rows_of_their_own(folder, exported, phantoms):
    place, found = export_run(folder, "openvino", data_dir=phantoms)
    assert {path.name for path in place.iterdir()} == {"model.xml", "model.bin", "preprocessing.json", "export.json"}
    assert found["largest_logit_difference"] < 1e-4
    place, found = export_run(folder, "onnx", int8=True, data_dir=phantoms, force=True)
    assert place == folder / "export" / "onnx-int8"
    assert 1e-6 < found["largest_logit_difference"] < 1
    assert b"QuantizeLinear" in (place / "model.onnx").read_bytes()
    assert FORMATS["onnx"].load(place / "model.onnx", 1)(np.zeros((3, 3, 32, 32), np.float32)).shape == (3, 2)
    assert table_of(folder / "README.md") == ["onnx", "onnx-int8", "openvino"]
    assert f"{found['largest_logit_difference']:.2g}" in (folder / "README.md").read_text()


def test_8_bits_of_openvino_are_those_of_onnx(folder, phantoms, tmp_path):
    place, found = export_run(folder, "openvino", int8=True, out=tmp_path / "new", data_dir=phantoms, force=True)
    assert place == tmp_path / "new"
    assert "FakeQuantize" in (place / "model.xml").read_text()
    assert found["largest_logit_difference"] < 1
    assert "openvino-int8" not in (folder / "README.md").read_text()  # it is elsewhere
    with pytest.raises(MedtlError, match="is not empty"):
        export_run(folder, "onnx", out=tmp_path / "new", data_dir=phantoms)


def test_an_export_that_decides_otherwise_is_refused(folder, exported, phantoms, monkeypatch, capsys, tmp_path):
    spoil(monkeypatch)
    other = shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("export"))
    before = (other / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["hf-medtl", "export", str(other), "--data_dir", str(phantoms)])
    with pytest.raises(SystemExit, match=r"decisions of .* differ .* ROC AUC is .*The export was discarded"):
        main()
    assert not list((other / "export").iterdir())
    assert (other / "README.md").read_text() == before
    _, found = export_run(other, "onnx", data_dir=phantoms, force=True)
    assert found["forced"] and found["decisions_changed"] > 0.005
    assert "**kept with --force**" in (other / "README.md").read_text()


def test_numbers_that_are_none_are_refused(folder, phantoms, monkeypatch, tmp_path):
    broken = Format("onnxruntime", FORMATS["onnx"].write, lambda *_: lambda x: np.full((len(x), 2), np.nan))
    monkeypatch.setitem(export_module.FORMATS, "onnx", broken)
    with pytest.raises(MedtlError, match="returned NaN or infinity"):
        export_run(folder, "onnx", out=tmp_path / "new", data_dir=phantoms, force=True)
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_exported_is_said(folder, tmp_path, monkeypatch):
    with pytest.raises(MedtlError, match="onnx, openvino"):
        export_run(folder, "torch")
    with pytest.raises(MedtlError, match="can't be loaded"):
        export_run(tmp_path, "onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MedtlError, match=r'pip install "hf_medtl\[export\]"'):
        write_onnx(AutoModelForImageClassification.from_pretrained(folder), 32, 32, tmp_path / "model.onnx")


def test_ensembles_are_tested_if_there_are_pictures_that_no_member_has_seen(finished, phantoms, tmp_path):
    one = shutil.copytree(finished, tmp_path / "one")
    ensemble([finished, one], tmp_path / "both")
    _, found = export_run(tmp_path / "both", "onnx", data_dir=phantoms)
    assert found["split"] == "test"
    assert found["metric"] == "roc_auc"
    assert found["largest_logit_difference"] < 1e-4
    (tmp_path / "both" / "splits.csv").unlink()  # as of an ensemble of folds
    with pytest.raises(MedtlError, match=r"no splits.csv.*--data_dir with any images"):
        export_run(tmp_path / "both", "onnx")
    _, found = export_run(tmp_path / "both", "onnx", data_dir=phantoms / "lesion")
    assert found["pictures"] == len(list((phantoms / "lesion").glob("*.png")))
    assert found["largest_logit_difference"] < 1e-4
    assert "metric" not in found
    assert "not tested: no split is known" in (tmp_path / "both" / "README.md").read_text()


def test_masks_are_compared_at_the_pictures_own_size(tmp_path):
    chests = write_phantoms(tmp_path / "chest", "chest", patients=12, pictures=1, size=72)
    wishes = {
        "dataset": "chest-phantoms",
        "task": "image-segmentation",
        "encoder": "tu-test_resnet",
        "num_train_epochs": 1,
    }
    wishes |= {"encoder_weights": "none", "image_size": 64, "largest_components": 2}
    place = run(Recipe(**options(chests, "unet", tmp_path / "run", **wishes)))
    _, found = export_run(place, "onnx", data_dir=chests)
    before = json.loads((place / "results.json").read_text())["metrics"]["dice"]
    assert found["metric"] == "dice"
    assert found["torch"]["value"] == pytest.approx(before["value"], abs=1e-6)
    assert found["exported"]["value"] == pytest.approx(before["value"], abs=1e-3)
    assert found["decisions_changed"] < 0.005
    said = json.loads((place / "export" / "onnx" / "preprocessing.json").read_text())
    assert said["output"]["shape"] == ["batch", 2, 64, 64]
    assert said["decision"]["postprocessing"] == {"largest_components": 2}
    assert "mask = logits.argmax(axis=0)" in (place / "README.md").read_text()


@pytest.fixture(scope="module")
def marks(tiny, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A run of several labels a picture by the small CNN, its table, and one of its pictures."""
    place = tmp_path_factory.mktemp("marks")
    data = table_of_marks(place / "marks")
    wishes = {"dataset": "table", "num_train_epochs": 4, "learning_rate": 2e-3}
    return run(Recipe(**options(data, tiny("cnn"), place / "run", **wishes))), data, data.parent / "pictures/002.png"


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A run of a SegFormer of transformers, its data, and one of its pictures."""
    place = tmp_path_factory.mktemp("native")
    chests = write_phantoms(place / "chest", "chest", patients=12, pictures=1, size=72)
    wishes = {"dataset": "chest-phantoms", "task": "image-segmentation", "num_train_epochs": 1}
    folder = run(Recipe(**options(chests, save_segformer(place / "tiny"), place / "run", **wishes)))
    return folder, chests, next(chests.glob("normal/*.png"))


@pytest.mark.parametrize(
    ("kind", "format", "metric", "activation"),
    [("marks", "onnx", "roc_auc", "sigmoid"), ("native", "onnx", "dice", "softmax"),
     ("native", "openvino", "dice", "softmax")],
)  # fmt: skip
def test_runs_of_other_kinds(kind, format, metric, activation, request, monkeypatch, tmp_path, capsys):
    original, data, path = request.getfixturevalue(kind)
    folder = shutil.copytree(original, tmp_path / "run")
    place, found = export_run(folder, format, data_dir=data)
    result = json.loads((folder / "results.json").read_text())
    assert found["largest_logit_difference"] < 1e-4
    assert found["decisions_changed"] == 0
    assert found["metric"] == metric
    assert found["pictures"] == result["n"]
    assert found["exported"]["value"] == pytest.approx(result["metrics"][metric]["value"], abs=1e-6)
    said = json.loads((place / "preprocessing.json").read_text())
    assert said["activation"]["name"] == activation
    assert said["labels"] == result["labels"]
    check_exports(folder)
    config = json.loads((folder / "config.json").read_text())
    assert said["decision"] == {key: config[key] for key in said["decision"]}
    assert set(said["decision"]) == ({"thresholds"} if kind == "marks" else {"postprocessing"})
    (code,) = re.findall(r"```python\n(import json.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    shutil.copy(path, tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    answer = eval(capsys.readouterr().out)
    wanted = Predictor.from_pretrained(folder, device="cpu").predict(path)[0]
    if kind == "marks":
        assert answer == pytest.approx(wanted.probabilities, abs=1e-5)
    else:
        assert sum(answer.values()) == np.prod(said["output"]["shape"][-2:])
        assert list(answer) == result["labels"]


@pytest.mark.parametrize("kind", ["marks", "native"])
def test_8_bits_of_other_kinds(kind, request, tmp_path):
    original, data, _ = request.getfixturevalue(kind)
    folder = shutil.copytree(original, tmp_path / "run")
    place, found = export_run(folder, "onnx", int8=True, data_dir=data, force=True)
    assert 1e-6 < found["largest_logit_difference"] < 10
    assert b"QuantizeLinear" in (place / "model.onnx").read_bytes()
    text = (folder / "README.md").read_text()
    assert f"| `export/onnx-int8` | {found['largest_logit_difference']:.2g} |" in text
    assert "`int8`: weights and activations in 8 bits" in text


def retrain(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def rewrite(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (retrain, "made from other weights"),
        (lambda run: (run / "export/onnx/model.onnx").write_bytes(b"other"), "model.onnx are damaged"),
        (lambda run: (run / "export/onnx/model.onnx").unlink(), "model.onnx are damaged"),
        (lambda run: rewrite(run / "config.json", threshold=0.123), "decision rule .* differs .*: threshold"),
        (lambda run: rewrite(run / "export/onnx/export.json", weights_sha256=None), "an older version"),
    ],
    ids=["other weights", "changed", "gone", "another threshold", "unknown weights"],
)
def test_an_export_of_something_else_is_not_published(spoil, words, folder, exported, tmp_path, monkeypatch):
    other = shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("onnx-int8", "openvino"))
    plan_upload(other, WAIVED)
    spoil(other)
    with pytest.raises(MedtlError, match=f"{words}.*hf-medtl export .* --format onnx\\), or delete"):
        plan_upload(other, WAIVED)
    monkeypatch.setattr(sys, "argv", ["hf-medtl", "card", "check", str(other)])
    with pytest.raises(SystemExit, match="Write it again"):
        main()
    shutil.rmtree(other / "export")
    plan_upload(other, WAIVED)


def test_the_contract_names_medical_steps(finished, phantoms):
    from hf_medtl.models.preprocessing import medical_processor

    model = AutoModelForImageClassification.from_pretrained(finished)
    processor = medical_processor({"size": {"height": 32, "width": 32}}, ["brain_crop", "blur", "clahe"], "pad", None)
    said = build_preprocessing_spec(model, processor, (32, 32), (1, 2), "model.onnx")
    names = [step["step"] for step in said["steps"]]
    assert names == ["read", "brain_crop", "resize", "blur", "clahe", "pad", "rescale", "normalise"]


@pytest.mark.real
def test_predictor_pipeline_and_onnx_agree_on_real_pictures(shared, real_brain, tmp_path):
    from hf_medtl.models.build import build_classifier

    model, processor = build_classifier(str(shared / "weights" / "tf_efficientnet_lite0-in1k"), ("no_tumor", "tumor"))
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    predictor = Predictor.from_pretrained(tmp_path, device="cpu")
    loaded = load("brain-tumor-mri", real_brain)
    paths = [loaded.root / path for path in loaded.table["path"][:100]]
    write_onnx(predictor.model, 224, 224, tmp_path / "model.onnx")
    ask = FORMATS["onnx"].load(tmp_path / "model.onnx", 1)
    said = Predictor(with_inference_fn(predictor.model, ask), AutoImageProcessor.from_pretrained(tmp_path)).predict(
        paths
    )
    stock = pipeline("image-classification", str(tmp_path), device="cpu")(
        [read_image(path) for path in paths], top_k=None
    )
    for ours, onnx, theirs in zip(predictor.predict(paths), said, stock, strict=True):
        assert onnx.probabilities == pytest.approx(ours.probabilities, abs=1e-4)
        assert onnx.probabilities == pytest.approx({its["label"]: its["score"] for its in theirs}, abs=1e-4)
    assert pd.Series([its.probabilities["tumor"] for its in said]).nunique() > 50
