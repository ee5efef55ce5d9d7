"""Experiment trackers: logged training, validation and test metrics; no local paths or tokens."""

import json
import os
import sqlite3
from pathlib import Path

import pytest

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.training import tracking
from tests.support.commands import options

LOGGED = ("train/loss", "eval/loss", "eval/roc_auc", "train/global_step", "test/roc_auc", "test/roc_auc_low",
          "test/roc_auc_high", "test/brier")  # fmt: skip


@pytest.fixture
def tracked(phantoms, tiny_checkpoint, tmp_path):
    """Return a function that runs with a tracker and returns the run folder."""

    def run_with(tracker: str, **overrides: object) -> Path:
        values = options(
            phantoms, tiny_checkpoint("vit"), tmp_path / "night-42", report_to=tracker, hub_token="hf_ci", **overrides
        )
        return run(Recipe(**values))

    return run_with


def secrets(phantoms: Path, tiny_checkpoint) -> list[str]:
    return [str(phantoms.parent), str(tiny_checkpoint("vit").parent), "hf_ci", str(Path.home())]


@pytest.mark.slow
def test_trackio_gets_metrics_but_no_paths_or_tokens(tracked, phantoms, tiny_checkpoint):
    logs = Path(os.environ["TRACKIO_DIR"])  # set in conftest.py: Trackio reads it when it is imported
    folder = tracked("trackio", project="wards")
    results = json.loads((folder / "results.json").read_text())["metrics"]
    (base,) = logs.glob("wards*.db")
    with sqlite3.connect(base) as connection:
        rows = connection.execute("select run_name, metrics from metrics order by id").fetchall()
        configs = connection.execute("select config from configs").fetchall()
    assert {name for name, _ in rows} == {"night-42"}  # test metrics are logged to the same run
    logged: dict[str, float] = {}
    for _, text in rows:
        logged |= json.loads(text)
    assert set(LOGGED) <= set(logged)
    auc = results["roc_auc"]
    assert [logged[f"test/roc_auc{end}"] for end in ("", "_low", "_high")] == [auc["value"], auc["low"], auc["high"]]
    config = json.loads(configs[0][0])
    assert (config["learning_rate"], config["model_name_or_path"]) == (2e-5, "tiny-vit")
    assert "output_dir" not in config
    for path in logs.rglob("*"):
        for secret in secrets(phantoms, tiny_checkpoint):
            assert path.is_dir() or secret.encode() not in path.read_bytes(), (path, secret)


@pytest.mark.slow
def test_tensorboard_gets_metrics_but_no_paths_or_tokens(tracked, phantoms, tiny_checkpoint):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tracked("tensorboard")
    (logs,) = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(logs))
    events.Reload()
    assert set(LOGGED) - {"train/global_step"} <= set(events.Tags()["scalars"])
    results = json.loads((folder / "results.json").read_text())["metrics"]
    (last,) = events.Scalars("test/roc_auc")
    assert last.value == pytest.approx(results["roc_auc"]["value"])
    assert len(events.Scalars("eval/loss")) == 2
    for path in logs.iterdir():
        for secret in secrets(phantoms, tiny_checkpoint):
            assert secret.encode() not in path.read_bytes(), secret


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "none, all, or one of .*tensorboard.*but is 'tensorbord'"),
        ("clearml", "--report_to clearml: the package is not installed. Run: pip install clearml"),
    ],
)
def test_rejects_unavailable_tracker_before_the_run(name, message, tmp_path):
    with pytest.raises(MedtlError, match=message):
        Recipe(output_dir=str(tmp_path / "run"), report_to=name)
    assert not (tmp_path / "run").exists()


def test_missing_tracker_names_the_extra(monkeypatch):
    monkeypatch.setattr(tracking, "get_available_reporting_integrations", list)
    with pytest.raises(MedtlError, match=r'pip install "hf_medtl\[tracking\]"'):
        tracking.check_trackers(["trackio"])
    tracking.check_trackers([])


@pytest.mark.slow
def test_trackers_are_closed_when_a_run_fails(tracked, monkeypatch):
    closed = []
    monkeypatch.setattr("hf_medtl.runs.train.write_artifacts", lambda *args: 1 / 0)
    usual = tracking.close_trackers
    monkeypatch.setattr("hf_medtl.runs.train.close_trackers", lambda trainer: (closed.append(trainer), usual(trainer)))
    with pytest.raises(ZeroDivisionError):
        tracked("tensorboard", num_train_epochs=1)
    (trainer,) = closed
    (tracker,) = tracking.tracker_callbacks(trainer)
    assert tracker.tb_writer is None
