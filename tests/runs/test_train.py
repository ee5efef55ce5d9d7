"""Whole runs: complete run folders that are usable without hf_medtl."""

import errno
import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.training.trainer import MedicalTrainer
from tests.support.commands import ROOT, flags, options, run_command
from tests.support.evaluation_script import EVALUATION_SCRIPT, printed_metrics

METRICS = ["accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "roc_auc",
           "average_precision", "brier", "ece"]  # fmt: skip

# Code of a user with stock transformers and scikit-learn, without hf_medtl.


@pytest.mark.slow
def test_run_with_medical_preprocessing_loads_with_its_own_code(stock_pool, phantoms, tiny_checkpoint, tmp_path):
    for family, fit in (("vit", "pad"), ("timm", "squash")):
        overrides = {"preprocessing": "brain_crop,clahe", "fit": fit, "num_train_epochs": 1}
        folder = run(Recipe(**options(phantoms, tiny_checkpoint(family), tmp_path / family, **overrides)))
        text = (folder / "README.md").read_text()
        assert "trust_remote_code=True" in text
        assert "cropped to the brain" in text
        results = json.loads((folder / "results.json").read_text())["metrics"]
        trusting = EVALUATION_SCRIPT.replace("model=model)", "model=model, trust_remote_code=True)")
        metrics = printed_metrics(stock_pool.run_code(trusting, folder, folder, phantoms))
        assert metrics == {name: results[name]["value"] for name in ("accuracy", "roc_auc")}
    code = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
import hf_medtl, transformers
print(type(transformers.AutoImageProcessor.from_pretrained({str(folder)!r})).__module__)"""
    # A process that has imported transformers, and one that has not.
    for process in (stock_pool.run_code(code), run_command(sys.executable, "-c", code)):
        assert process.stdout.strip() == "hf_medtl.models.processor", process.stderr


def test_run_folder_is_complete(finished_run):
    paths = [path.relative_to(finished_run) for path in finished_run.rglob("*") if path.is_file()]
    present = {str(path) for path in paths if "checkpoint-" not in str(path)}
    assert present == {
        "config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml", "splits.csv", "results.json",
        "predictions.csv", "README.md", "figures/history.png", "figures/confusion_matrix.png", "figures/roc.png",
        "figures/reliability.png", "figures/risk_coverage.png", "outliers.safetensors", "card.json", "checksums.json",
    }  # fmt: skip
    for figure in (finished_run / "figures").iterdir():
        Image.open(figure).verify()
    assert all((p / "trainer_state.json").exists() for p in finished_run.glob("checkpoint-*"))
    assert len(list(finished_run.glob("checkpoint-*"))) == 2


def test_results_follow_the_schema(results):
    assert set(results) == {"dataset", "task", "split", "n", "n_groups", "positive_label", "positive_label_source",
                            "threshold", "threshold_rule", "temperature", "calibration", "conformal", "metrics",
                            "interval_methods", "confusion_matrix", "recall", "labels", "outliers",
                            "train_seconds", "peak_memory_mb", "splits_sha256", "environment"}  # fmt: skip
    assert list(results["metrics"]) == METRICS
    for name, metric in results["metrics"].items():
        assert set(metric) == {"value", "low", "high"}
        if metric["value"] is not None and name != "ece":
            assert metric["low"] <= metric["value"] <= metric["high"], name
    assert list(results["interval_methods"]) == METRICS
    assert sum(map(sum, results["confusion_matrix"])) == results["n"]
    assert results["n_groups"] <= results["n"]
    assert results["train_seconds"] > 0
    assert results["peak_memory_mb"] > 0
    assert 0 < results["threshold"] < 1


def test_saved_split_keeps_groups_together(finished_run):
    rows = pd.read_csv(finished_run / "splits.csv")
    assert list(rows.columns) == ["image_id", "path", "label", "patient", "group", "split", "sha256"]
    assert rows.groupby("group")["split"].nunique().max() == 1
    assert rows.groupby("patient")["split"].nunique().max() == 1
    assert rows["image_id"].is_unique
    assert set(rows["split"]) == {"train", "validation", "test"}


@pytest.mark.slow
def test_stock_code_reproduces_the_reported_metrics(stock_pool, finished_run, results, phantoms):
    metrics = printed_metrics(stock_pool.run_code(EVALUATION_SCRIPT, finished_run, finished_run, phantoms))
    assert metrics == {name: results["metrics"][name]["value"] for name in ("accuracy", "roc_auc")}


def test_card_is_valid_and_has_the_results(finished_run, results):
    text = (finished_run / "README.md").read_text()
    data = ModelCard(text).data
    assert data.license == "apache-2.0"
    assert data.base_model is data.datasets is None  # neither is on the Hub, and the Hub would link them
    assert data.pipeline_tag == "image-classification"
    assert data.library_name == "transformers"
    reported = {r.metric_type: r.metric_value for r in data.eval_results}
    assert reported["roc_auc"] == round(results["metrics"]["roc_auc"]["value"], 4)
    assert "synthetic-data" in data.tags
    for phrase in (
        "Not a medical device",
        "Synthetic data",
        "Intended use",
        "Limits",
        'pipeline("image-classification"',
    ):
        assert phrase in text
    auc = results["metrics"]["roc_auc"]
    assert f"| ROC AUC | {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}] |" in text
    yaml.safe_load(text.split("---")[1])


def test_published_files_hold_no_local_paths(finished_run, phantoms, tiny_checkpoint):
    for path in finished_run.rglob("*"):
        if path.is_file() and "checkpoint-" not in str(path) and path.suffix not in (".png", ".safetensors"):
            text = path.read_text()
            assert str(phantoms.parent) not in text, path
            assert str(tiny_checkpoint("vit").parent) not in text, path
            assert "hf_ci" not in text, path


def test_dry_run_writes_nothing(phantoms, tiny_checkpoint, tmp_path, capsys):
    run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", dry_run=True)))
    assert not (tmp_path / "run").exists()
    output = capsys.readouterr().out
    assert "ViTForImageClassification" in output
    assert "GB in" in output


def test_rejects_folders_that_a_run_would_spoil(finished_run, phantoms, tiny_checkpoint, tmp_path):
    def start(output: Path) -> None:
        run(Recipe(**options(phantoms, tiny_checkpoint("vit"), output)))

    with pytest.raises(MedtlError, match="holds a finished run"):
        start(finished_run)
    (tmp_path / "unfinished" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "unfinished" / "UNFINISHED").touch()
    with pytest.raises(MedtlError, match="--resume_from_checkpoint auto"):
        start(tmp_path / "unfinished")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(MedtlError, match="is not empty"):
        start(tmp_path / "thesis")
    (tmp_path / "file").touch()
    with pytest.raises(MedtlError, match="is a file"):
        start(tmp_path / "file")


def test_full_disk_raises_before_and_during_the_run(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
        with pytest.raises(MedtlError, match=r"0\.00 GB free"):
            run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "before")))
    assert not (tmp_path / "before").exists()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MedicalTrainer, "train", full)
    with pytest.raises(MedtlError, match="make room"):
        run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "during")))
    assert (tmp_path / "during" / "UNFINISHED").exists()


def test_rejects_resuming_with_other_images(phantoms, tiny_checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "UNFINISHED").touch()
    (tmp_path / "run" / "splits.csv").write_text("sha256,split\nabc,train\n")
    with pytest.raises(MedtlError, match="differ from"):
        run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", resume_from_checkpoint="auto")))


@pytest.mark.slow
def test_user_errors_have_no_traceback(process_pool, phantoms, tmp_path):
    values = options(phantoms, Path("nobody/absent"), tmp_path / "run")
    process = process_pool.run_script("recipes/vit_brain.py", *flags(**values))
    assert process.returncode == 1
    assert "Error: --model_name_or_path: There is no folder and no model nobody/absent on the Hub" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.slow
def test_recipe_runs_two_steps(process_pool, phantoms, tiny_checkpoint, tmp_path):
    values = options(
        phantoms,
        tiny_checkpoint("vit"),
        tmp_path / "run",
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    process = process_pool.run_script("recipes/vit_brain.py", *flags(**values))
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_one_and_two_processes_give_equal_metrics(process_pool, phantoms, tiny_checkpoint, tmp_path):
    """Images that pad the last batch must not count. With learning rate 0 rounding errors can't add up."""
    results = {}
    for processes in (1, 2):
        output = tmp_path / f"run{processes}"
        values = options(phantoms, tiny_checkpoint("convnext"), output, per_device_train_batch_size=8,
                         per_device_eval_batch_size=3, learning_rate=0.0, logging_steps=1)  # fmt: skip
        process_pool.run(tmp_path / f"log{processes}", *flags(**values), processes=processes)
        state = json.loads(next(output.glob("checkpoint-*/trainer_state.json")).read_text())
        result = json.loads((output / "results.json").read_text())
        assert result["environment"]["processes"] == processes
        results[processes] = result, state["log_history"], pd.read_csv(output / "predictions.csv")
    (result, log, predictions), (result2, log2, predictions2) = results[1], results[2]
    pd.testing.assert_frame_equal(predictions, predictions2, rtol=1e-6)
    for name in METRICS:
        assert result["metrics"][name] == pytest.approx(result2["metrics"][name], abs=1e-6), name
    for row, row2 in zip(log, log2, strict=True):
        for name in row.keys() & {"step", "loss", "eval_loss", *(f"eval_{metric}" for metric in METRICS)}:
            assert row[name] == pytest.approx(row2[name], abs=1e-4, nan_ok=True), (row["step"], name)


@pytest.mark.real
@pytest.mark.slow
def test_stock_code_reproduces_metrics_on_real_data(process_pool, stock_pool, real_brain, shared, tmp_path):
    """Stock code reproduces the metrics of two training steps on real images and weights."""
    values = {"data_dir": real_brain, "model_name_or_path": shared / "weights" / "tf_efficientnet_lite0-in1k",
              "output_dir": tmp_path / "run", "max_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
              "save_strategy": "steps", "save_steps": 2, "use_cpu": True}  # fmt: skip
    process = process_pool.run_script("recipes/vit_brain.py", *flags(**values))
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["n"] == 51
    run_folder = tmp_path / "run"
    metrics = printed_metrics(stock_pool.run_code(EVALUATION_SCRIPT, run_folder, run_folder, real_brain))
    assert metrics == {name: results["metrics"][name]["value"] for name in ("accuracy", "roc_auc")}
