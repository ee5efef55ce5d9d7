"""Exports: predictions equal to the run's, a verification report, and errors where decisions differ."""

import copy
import hashlib
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

from hf_medtl import MedtlError, Predictor, Recipe, read_image, run
from hf_medtl.cli.app import main
from hf_medtl.data.phantoms import write_phantoms
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
from tests.support.killed import leave_killed
from tests.support.multilabel_tables import write_table
from tests.support.segmentation_runs import segmentation_recipe
from tests.support.tiny_models import build_tiny, save_segformer


def build_model(family: str, tiny_checkpoint, folder: Path) -> torch.nn.Module:
    if family == "smp":
        return build_tiny()[0]
    if family == "segformer":
        return AutoModelForSemanticSegmentation.from_pretrained(save_segformer(folder), dtype=torch.float32).eval()
    if family == "ensemble":  # its members normalise differently
        configs = [
            AutoModelForImageClassification.from_pretrained(tiny_checkpoint(name)).config.to_dict()
            for name in ("vit", "cnn")
        ]
        third, half = [0.3] * 3, [0.5] * 3
        members = [
            {"config": config, "mean": mean, "std": half} for config, mean in zip(configs, (half, third), strict=True)
        ]
        return EnsembleForImageClassification(EnsembleConfig(members, half, half, num_labels=3)).eval()
    model = AutoModelForImageClassification.from_pretrained(tiny_checkpoint(family), dtype=torch.float32)
    for module in model.modules():  # batch statistics as after training: those of a new model give logits of 0
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(
            pixel_values=torch.randn(8, 3, 64, 64) if family.startswith("timm") else torch.randn(8, 3, 32, 32)
        )
    return model.eval()


FAMILIES = ["vit", "swin", "timm-vit", "timm-convnext", "timm-efficientnet", "cnn", "ensemble", "smp", "segformer"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_formats_match_torch_for_any_batch_size(family, tiny_checkpoint, tmp_path):
    model = build_model(family, tiny_checkpoint, tmp_path / "tiny")
    attention = model.config._attn_implementation
    size = 64 if family in ("smp", "segformer") or family.startswith("timm") else 32
    write_onnx(model, size, size, tmp_path / "model.onnx")
    assert model.config._attn_implementation == attention
    inference_fns = []
    for exporter in FORMATS.values():
        (tmp_path / exporter.package).mkdir()
        shutil.copy(tmp_path / "model.onnx", tmp_path / exporter.package / "source.onnx")
        inference_fns.append(
            exporter.load(exporter.write(tmp_path / exporter.package / "source.onnx", tmp_path / exporter.package), 1)
        )
    for number in (1, 3):
        pixels = torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(number))
        with torch.inference_mode():
            expected = model(pixel_values=pixels).logits.numpy()
        assert np.ptp(expected) > 1e-3
        for infer in inference_fns:
            actual = infer(pixels.numpy())
            assert actual.shape == expected.shape
            assert np.abs(actual - expected).max() < 1e-4


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory) -> Path:
    """Return a copy of a finished run, to export."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def exported(folder, phantoms) -> dict:
    return export_run(folder, "onnx", data_dir=phantoms)[1]


@pytest.fixture(scope="module", autouse=True)
def write_graph():
    """Let the exports of one model share its ONNX graph, which takes seconds to make; return what writes it."""
    graphs: dict[str, bytes] = {}

    def write(model, height, width, file):
        settings = model.config.to_dict() | {"_name_or_path": "", "size": [height, width]}
        key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, tensor in model.state_dict().items():
            key.update(name.encode() + tensor.numpy().tobytes())
        if key.hexdigest() not in graphs:
            write_onnx(model, height, width, file)
            graphs[key.hexdigest()] = file.read_bytes()
        file.write_bytes(graphs[key.hexdigest()])

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("hf_medtl.export.export.write_onnx", write)
        yield write


def export_other_weights(monkeypatch, write) -> None:
    """Export a model with other weights than the run's."""

    def write_changed(model, height, width, file):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            find_head(changed).weight.neg_().mul_(100)
        write(changed, height, width, file)

    monkeypatch.setattr("hf_medtl.export.export.write_onnx", write_changed)


def exported_formats(card: Path) -> list[str]:
    return re.findall(r"^\| `export/(.*?)`", card.read_text(), flags=re.MULTILINE)


@pytest.mark.slow
def test_export_json_and_card_report_the_verification(folder, exported, results):
    assert json.loads((folder / "export" / "onnx" / "export.json").read_text()) == exported
    assert exported["pictures"] == results["n"]
    assert exported["largest_logit_difference"] < 1e-4
    assert exported["decisions_changed"] == 0
    assert exported["torch"]["value"] == pytest.approx(results["metrics"]["roc_auc"]["value"])
    assert exported["exported"] == exported["torch"]
    assert exported["difference"]["value"] == 0
    assert min(exported["milliseconds"].values()) > 0
    assert exported_formats(folder / "README.md") == ["onnx"]
    assert not list((folder / "export").glob(".*"))
    assert {f"export/onnx/{name}" for name in ("model.onnx", "preprocessing.json", "export.json")} <= set(
        plan_upload(folder, WAIVED)
    )


def test_preprocessing_json_suffices_to_reproduce_predictions(folder, exported, phantoms):
    """Follow preprocessing.json with Pillow, numpy and ONNX Runtime, as a program in another language would."""
    spec = json.loads((folder / "export" / "onnx" / "preprocessing.json").read_text())
    step = {entry["step"]: entry for entry in spec["steps"]}
    path = next(phantoms.glob("*lesion/*.png"))
    size = step["resize"]["width"], step["resize"]["height"]
    image = Image.open(path).convert("RGB").resize(size, Image.Resampling[step["resize"]["resample"].upper()])
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) * step["rescale"]["factor"]
    mean, std = (np.reshape(step["normalise"][key], (3, 1, 1)) for key in ("mean", "std"))
    infer = FORMATS["onnx"].load(folder / "export" / "onnx" / spec["model"], 1)
    logits = infer(((pixels - mean) / std)[None].astype(np.float32))[0]
    assert spec["input"]["shape"] == ["batch", *pixels.shape]
    assert spec["output"]["shape"] == ["batch", len(spec["labels"])]
    actual = np.exp(logits) / np.exp(logits).sum()
    expected = Predictor.from_pretrained(folder, device="cpu").predict(path)[0]
    # When resizing, torchvision and Pillow round differently, by up to one grey value.
    assert actual == pytest.approx([expected.probabilities[label] for label in spec["labels"]], abs=0.01)
    config = json.loads((folder / "config.json").read_text())
    assert spec["decision"]["threshold"] == config["threshold"]
    assert spec["decision"]["conformal"] == config["conformal"]


def test_code_on_the_card_gives_the_predictions(folder, exported, phantoms, monkeypatch, tmp_path, capsys):
    (code,) = re.findall(r"```python\n(import json.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    path = next(phantoms.glob("*lesion/*.png"))
    shutil.copy(path, tmp_path / "image.png")
    (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    expected = Predictor.from_pretrained(folder, device="cpu").predict(path)[0].probabilities
    assert eval(capsys.readouterr().out) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_openvino_and_int8_exports_get_their_own_rows(folder, exported, phantoms):
    export_folder, report = export_run(folder, "openvino", data_dir=phantoms)
    assert {path.name for path in export_folder.iterdir()} == {
        "model.xml",
        "model.bin",
        "preprocessing.json",
        "export.json",
    }
    assert report["largest_logit_difference"] < 1e-4
    export_folder, report = export_run(folder, "onnx", int8=True, data_dir=phantoms, force=True)
    assert export_folder == folder / "export" / "onnx-int8"
    assert 1e-6 < report["largest_logit_difference"] < 1
    assert b"QuantizeLinear" in (export_folder / "model.onnx").read_bytes()
    assert FORMATS["onnx"].load(export_folder / "model.onnx", 1)(np.zeros((3, 3, 32, 32), np.float32)).shape == (3, 2)
    assert exported_formats(folder / "README.md") == ["onnx", "onnx-int8", "openvino"]
    assert f"{report['largest_logit_difference']:.2g}" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_openvino_int8_export_in_another_folder(folder, phantoms, tmp_path):
    export_folder, report = export_run(
        folder, "openvino", int8=True, out=leave_killed(tmp_path / "new"), data_dir=phantoms, force=True
    )
    assert export_folder == tmp_path / "new"
    assert {path.name for path in export_folder.iterdir()} == {
        *("export.json", "model.bin", "model.xml", "preprocessing.json")
    }
    assert "FakeQuantize" in (export_folder / "model.xml").read_text()
    assert report["largest_logit_difference"] < 1
    assert "openvino-int8" not in (folder / "README.md").read_text()  # the export is in another folder
    with pytest.raises(MedtlError, match="is not empty"):
        export_run(folder, "onnx", out=tmp_path / "new", data_dir=phantoms)


@pytest.mark.slow
def test_rejects_export_with_other_decisions_unless_forced(
    folder, exported, phantoms, write_graph, monkeypatch, capsys, tmp_path
):
    export_other_weights(monkeypatch, write_graph)
    changed = shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("export"))
    before = (changed / "README.md").read_text()
    monkeypatch.setattr(sys, "argv", ["hf-medtl", "export", str(changed), "--data_dir", str(phantoms)])
    with pytest.raises(SystemExit, match=r"decisions of .* differ .* ROC AUC is .*The export was discarded"):
        main()
    assert not list((changed / "export").iterdir())
    assert (changed / "README.md").read_text() == before
    _, report = export_run(changed, "onnx", data_dir=phantoms, force=True)
    assert report["forced"] and report["decisions_changed"] > 0.005
    assert "**kept with --force**" in (changed / "README.md").read_text()


@pytest.mark.slow
def test_rejects_nan_outputs(folder, phantoms, monkeypatch, tmp_path):
    broken = Format("onnxruntime", FORMATS["onnx"].write, lambda *_: lambda x: np.full((len(x), 2), np.nan))
    monkeypatch.setitem(FORMATS, "onnx", broken)
    with pytest.raises(MedtlError, match="returned NaN or infinity"):
        export_run(folder, "onnx", out=tmp_path / "new", data_dir=phantoms, force=True)
    assert not list(tmp_path.iterdir())


def test_rejects_unknown_format_missing_model_and_missing_extra(folder, tmp_path, monkeypatch):
    with pytest.raises(MedtlError, match="onnx, openvino"):
        export_run(folder, "torch")
    with pytest.raises(MedtlError, match="can't be loaded"):
        export_run(tmp_path, "onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MedtlError, match=r'pip install "hf_medtl\[export\]"'):
        write_onnx(AutoModelForImageClassification.from_pretrained(folder), 32, 32, tmp_path / "model.onnx")


@pytest.mark.slow
def test_ensemble_is_verified_on_shared_test_images_or_given_ones(finished_run, phantoms, tmp_path):
    member = shutil.copytree(finished_run, tmp_path / "one")
    ensemble([finished_run, member], tmp_path / "both")
    _, report = export_run(tmp_path / "both", "onnx", data_dir=phantoms)
    assert report["split"] == "test"
    assert report["metric"] == "roc_auc"
    assert report["largest_logit_difference"] < 1e-4
    for name in ("splits.csv", "checksums.json"):
        (tmp_path / "both" / name).unlink()  # as in an ensemble of folds
    with pytest.raises(MedtlError, match=r"no splits.csv.*--data_dir with any images"):
        export_run(tmp_path / "both", "onnx")
    _, report = export_run(tmp_path / "both", "onnx", data_dir=phantoms / "lesion")
    assert report["pictures"] == len(list((phantoms / "lesion").glob("*.png")))
    assert report["largest_logit_difference"] < 1e-4
    assert "metric" not in report
    assert "not tested: no split is known" in (tmp_path / "both" / "README.md").read_text()


@pytest.mark.slow
def test_masks_are_compared_at_image_size(tmp_path):
    chests = write_phantoms(tmp_path / "chest", "chest", patients=12, images=1, size=72)
    run_folder = run(segmentation_recipe(chests, tmp_path / "run", num_train_epochs=1, largest_components=2))
    _, report = export_run(run_folder, "onnx", data_dir=chests)
    before = json.loads((run_folder / "results.json").read_text())["metrics"]["dice"]
    assert report["metric"] == "dice"
    assert report["torch"]["value"] == pytest.approx(before["value"], abs=1e-6)
    assert report["exported"]["value"] == pytest.approx(before["value"], abs=1e-3)
    assert report["decisions_changed"] < 0.005
    spec = json.loads((run_folder / "export" / "onnx" / "preprocessing.json").read_text())
    assert spec["output"]["shape"] == ["batch", 2, 64, 64]
    assert spec["decision"]["postprocessing"] == {"largest_components": 2}
    assert spec["license"] == {"license": "apache-2.0"}
    assert "mask = logits.argmax(axis=0)" in (run_folder / "README.md").read_text()


@pytest.fixture(scope="module")
def multilabel_run(tiny_checkpoint, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Return a multilabel run of the small CNN, its table, and one of its images."""
    root = tmp_path_factory.mktemp("multilabel")
    data = write_table(root / "table")
    values = {"dataset": "table", "num_train_epochs": 4, "learning_rate": 2e-3}
    return (
        run(Recipe(**options(data, tiny_checkpoint("cnn"), root / "run", **values))),
        data,
        data.parent / "pictures/002.png",
    )


@pytest.fixture(scope="module")
def segformer_run(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Return a run of a SegFormer of transformers, its data, and one of its images."""
    root = tmp_path_factory.mktemp("segformer")
    chests = write_phantoms(root / "chest", "chest", patients=12, images=1, size=72)
    values = {"dataset": "chest-phantoms", "task": "image-segmentation", "num_train_epochs": 1}
    folder = run(Recipe(**options(chests, save_segformer(root / "tiny"), root / "run", **values)))
    return folder, chests, next(chests.glob("normal/*.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "format", "metric", "activation"),
    [("multilabel_run", "onnx", "roc_auc", "sigmoid"), ("segformer_run", "onnx", "dice", "softmax"),
     ("segformer_run", "openvino", "dice", "softmax")],
)  # fmt: skip
def test_multilabel_and_segformer_exports_match_the_run(
    kind, format, metric, activation, request, monkeypatch, tmp_path, capsys
):
    original, data, path = request.getfixturevalue(kind)
    folder = shutil.copytree(original, tmp_path / "run")
    export_folder, report = export_run(folder, format, data_dir=data)
    result = json.loads((folder / "results.json").read_text())
    assert report["largest_logit_difference"] < 1e-4
    assert report["decisions_changed"] == 0
    assert report["metric"] == metric
    assert report["pictures"] == result["n"]
    assert report["exported"]["value"] == pytest.approx(result["metrics"][metric]["value"], abs=1e-6)
    spec = json.loads((export_folder / "preprocessing.json").read_text())
    assert spec["activation"]["name"] == activation
    assert spec["labels"] == result["labels"]
    check_exports(folder)
    config = json.loads((folder / "config.json").read_text())
    assert spec["decision"] == {key: config[key] for key in spec["decision"]}
    assert set(spec["decision"]) == ({"thresholds"} if kind == "multilabel_run" else {"postprocessing"})
    (code,) = re.findall(r"```python\n(import json.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    shutil.copy(path, tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(code, {})
    output = eval(capsys.readouterr().out)
    expected = Predictor.from_pretrained(folder, device="cpu").predict(path)[0]
    if kind == "multilabel_run":
        assert output == pytest.approx(expected.probabilities, abs=1e-5)
    else:
        assert sum(output.values()) == np.prod(spec["output"]["shape"][-2:])
        assert list(output) == result["labels"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multilabel_run", "segformer_run"])
def test_int8_exports_of_multilabel_and_segformer(kind, request, tmp_path):
    original, data, _ = request.getfixturevalue(kind)
    folder = shutil.copytree(original, tmp_path / "run")
    export_folder, report = export_run(folder, "onnx", int8=True, data_dir=data, force=True)
    assert 1e-6 < report["largest_logit_difference"] < 10
    assert b"QuantizeLinear" in (export_folder / "model.onnx").read_bytes()
    text = (folder / "README.md").read_text()
    assert f"| `export/onnx-int8` | {report['largest_logit_difference']:.2g} |" in text
    assert "`int8`: weights and activations in 8 bits" in text


def retrain(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def rewrite(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("export_other_weights", "message"),
    [
        (retrain, "made from other weights"),
        (lambda run: (run / "export/onnx/model.onnx").write_bytes(b"other"), "model.onnx are damaged"),
        (lambda run: (run / "export/onnx/model.onnx").unlink(), "model.onnx are damaged"),
        (lambda run: rewrite(run / "config.json", threshold=0.123), "decision rule .* differs .*: threshold"),
        (lambda run: rewrite(run / "export/onnx/export.json", weights_sha256=None), "an older version"),
    ],
    ids=["other weights", "changed", "gone", "another threshold", "unknown weights"],
)
def test_outdated_export_blocks_publishing(export_other_weights, message, folder, exported, tmp_path, monkeypatch):
    ignored = shutil.ignore_patterns("onnx-int8", "openvino", "checksums.json")
    run_copy = shutil.copytree(folder, tmp_path / "other", ignore=ignored)
    plan_upload(run_copy, WAIVED)
    export_other_weights(run_copy)
    with pytest.raises(MedtlError, match=f"{message}.*hf-medtl export .* --format onnx\\), or delete"):
        plan_upload(run_copy, WAIVED)
    monkeypatch.setattr(sys, "argv", ["hf-medtl", "card", "check", str(run_copy)])
    with pytest.raises(SystemExit, match="Write it again"):
        main()
    shutil.rmtree(run_copy / "export")
    plan_upload(run_copy, WAIVED)


def test_preprocessing_spec_names_medical_steps(finished_run, phantoms):
    from hf_medtl.models.preprocessing import medical_processor

    model = AutoModelForImageClassification.from_pretrained(finished_run)
    processor = medical_processor({"size": {"height": 32, "width": 32}}, ["brain_crop", "blur", "clahe"], "pad", None)
    spec = build_preprocessing_spec(model, processor, (32, 32), (1, 2), "model.onnx")
    names = [step["step"] for step in spec["steps"]]
    assert names == ["read", "brain_crop", "resize", "blur", "clahe", "pad", "rescale", "normalise"]


@pytest.mark.real
def test_predictor_pipeline_and_onnx_agree_on_real_images(shared, real_brain, tmp_path):
    from hf_medtl.models.build import build_classifier

    model, processor = build_classifier(str(shared / "weights" / "tf_efficientnet_lite0-in1k"), ("no_tumor", "tumor"))
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    predictor = Predictor.from_pretrained(tmp_path, device="cpu")
    paths = sorted(real_brain.rglob("*.jpg"))[::6]
    assert len(paths) > 20
    write_onnx(predictor.model, 224, 224, tmp_path / "model.onnx")
    infer = FORMATS["onnx"].load(tmp_path / "model.onnx", 1)
    from_onnx = Predictor(
        with_inference_fn(predictor.model, infer), AutoImageProcessor.from_pretrained(tmp_path)
    ).predict(paths)
    stock = pipeline("image-classification", str(tmp_path), device="cpu")(
        [read_image(path) for path in paths], top_k=None
    )
    for predicted, exported, rows in zip(predictor.predict(paths), from_onnx, stock, strict=True):
        assert exported.probabilities == pytest.approx(predicted.probabilities, abs=1e-4)
        assert exported.probabilities == pytest.approx(
            {prediction["label"]: prediction["score"] for prediction in rows}, abs=1e-4
        )
    assert pd.Series([prediction.probabilities["tumor"] for prediction in from_onnx]).nunique() > 20
