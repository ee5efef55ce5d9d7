"""Model card of a run: the rehearsal before training, and writing it again."""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainerState

from hf_medtl import MedtlError, Recipe
from hf_medtl.common.checksums import find_changed_files
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.publish.card_fields import AUTHOR_FIELDS, missing_fields
from hf_medtl.publish.templates import copy_sections, replace_section
from hf_medtl.runs import preflight
from hf_medtl.runs.artifacts import write_artifacts
from hf_medtl.runs.model_card import collect_facts, render_with_dummy_results, rewrite_card, warn_instead
from hf_medtl.runs.redrawing import redraw_figures
from hf_medtl.tasks import get_task
from tests.support.commands import options, run_cli
from tests.support.multilabel_tables import write_table


@pytest.fixture
def planned(phantoms, tiny_checkpoint, tmp_path):
    """Return a function that checks a recipe and returns it with its plan."""

    def check(prose: str = "", **more: object):
        (tmp_path / "own.md").write_text(prose, encoding="utf-8")
        values = options(
            phantoms, tiny_checkpoint("vit"), tmp_path / "run", model_card=str(tmp_path / "own.md"), **more
        )
        recipe = Recipe(**values)
        return recipe, preflight.check(recipe)

    return check


def rehearse(recipe, plan):
    return render_with_dummy_results(recipe, plan.task, plan.loaded, plan.external, plan.card)


def test_card_is_rehearsed_with_the_size_of_the_test_split(planned):
    recipe, plan = planned(r"{{ results.n }} images of {{ results.positive_label }}, \alpha")
    size = len(plan.loaded.rows("test"))
    text = rehearse(recipe, plan)
    assert f"{size} images of lesion, \\alpha" in text
    assert f"On the test split: {size} images" in text


@pytest.mark.parametrize(
    ("prose", "message"),
    [
        ("{{ results.n }} of {{ patients }}", "'patients' is undefined"),
        ("{{ results.per_label.lesion.threshold }}", "per_label"),  # exists for multilabel data only
        ("---\nfindings: 3\n---\n", "each label with its phrase"),
    ],
)
def test_prose_that_does_not_fit_is_refused_before_training(prose, message, planned, tmp_path):
    with pytest.raises(MedtlError, match=message):
        planned(prose)
    assert not (tmp_path / "run").exists()


def test_prose_of_two_labels_is_refused_for_three(tiny_checkpoint, tmp_path, planned):
    data = write_table(tmp_path / "three", 48, cells=("glioma", "meningioma", "notumor"))
    with pytest.raises(MedtlError, match="no element None"):
        planned("{{ counts.test[results.positive_label] }}", dataset="table", data_dir=str(data))
    prose = "{% if results.positive_label %}{{ counts.test[results.positive_label] }}{% endif %}{{ results.labels }}"
    recipe, plan = planned(prose, dataset="table", data_dir=str(data))
    assert "['glioma', 'meningioma', 'notumor']" in rehearse(recipe, plan)


def test_card_of_multilabel_data_and_an_external_set_is_rehearsed(tiny_checkpoint, tmp_path, planned):
    data, other = write_table(tmp_path / "marks", 48), write_table(tmp_path / "other", 24, 5000)
    external = {"external_dataset": "table", "external_data_dir": str(other)}
    recipe, plan = planned("{{ results.per_label | length }}", dataset="table", data_dir=str(data), **external)
    assert "24 images in 12 groups, with the same thresholds" in rehearse(recipe, plan)


def test_unknown_licence_is_refused_before_training(planned):
    with pytest.raises(MedtlError, match="knows no licence 'Apache 2'"):
        planned(model_license="Apache 2")


def test_written_again_a_card_is_the_same(publishable_run):
    before = (publishable_run / "README.md").read_text("utf-8")
    config = (publishable_run / "config.json").read_text("utf-8")
    rewrite_card(publishable_run)
    assert (publishable_run / "README.md").read_text("utf-8") == before
    assert (publishable_run / "config.json").read_text("utf-8") == config


def test_written_again_with_another_text_a_card_keeps_the_sections_of_other_commands(publishable_run, tmp_path):
    card, own = publishable_run / "README.md", tmp_path / "own.md"
    own.write_text("---\nfindings:\n  lesion: a spot\n---\n## Limits\n\nOur {{ results.n }} heads.\n", encoding="utf-8")
    replace_section(card, "explanations", "Examined.")
    replace_section(card, "exports", "As ONNX.")
    assert "card check" in run_cli("card", "write", publishable_run, "--model_card", own)
    text, results = card.read_text("utf-8"), json.loads((publishable_run / "results.json").read_text())
    assert f"Our {results['n']} heads." in text
    assert "brain MRI" not in text.partition("## Data and split")[0]
    assert "Examined." in text
    assert text.rstrip().endswith("<!-- exports -->\nAs ONNX.\n<!-- /exports -->")
    assert json.loads((publishable_run / "config.json").read_text())["wording"]["lesion"].startswith("A spot; of the")
    assert missing_fields(text, results, AUTHOR_FIELDS).keys() == {*AUTHOR_FIELDS} - {"limits"}
    (publishable_run / "card.json").unlink()
    with pytest.raises(MedtlError, match=r"no results.json or no card.json"):
        rewrite_card(publishable_run)


def test_figures_are_drawn_again_from_the_predictions(publishable_run, tmp_path):
    run, figures = RunFolder(publishable_run), publishable_run / "figures"
    names = {path.name for path in figures.iterdir()} - {"risk_coverage.png"}
    for name in names:
        (figures / name).unlink()
    run.mark_finished()
    with pytest.raises(MedtlError, match="found 'gif'"):
        redraw_figures(publishable_run, "gif")
    output = run_cli("card", "write", publishable_run, "--figures", "pdf")
    assert "risk-coverage curves there are as they were" in output
    drawn = {path.name for path in figures.iterdir()}
    assert drawn == {"risk_coverage.png"} | names | {name.replace(".png", ".pdf") for name in names}
    assert find_changed_files(publishable_run) == []
    assert run.results["metrics"]  # as they were


def test_copies_sections_that_the_new_card_has_or_lacks():
    old = "a\n<!-- one -->\n1\n<!-- /one -->\nb\n<!-- two -->\n2\n<!-- /two -->\n"
    new = "c\n<!-- one -->\nnone\n<!-- /one -->\nd\n"
    assert copy_sections(old, new, ("one", "two", "three")) == (
        "c\n<!-- one -->\n1\n<!-- /one -->\nd\n\n<!-- two -->\n2\n<!-- /two -->\n"
    )


def test_failure_after_training_is_a_warning_with_a_command(tmp_path, caplog):
    with (
        caplog.at_level(logging.WARNING, "hf_medtl"),
        warn_instead("The model card", tmp_path, "hf-medtl card write X"),
    ):
        raise KeyError("label")
    assert "The model card could not be made (KeyError: 'label')." in caplog.text
    assert "Make it again: hf-medtl card write X" in caplog.text
    with pytest.raises(OSError), warn_instead("The model card", tmp_path, ""):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "broken", ["hf_medtl.runs.model_card.render_card", "hf_medtl.evaluation.plots.training_history"]
)
def test_results_are_written_without_card_or_figures(
    broken, finished_run, phantoms, tiny_checkpoint, tmp_path, monkeypatch, caplog
):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    before = json.loads((folder / "results.json").read_text())
    recipe = Recipe(**options(phantoms, tiny_checkpoint("vit"), folder))
    loaded, task = recipe.load_data(), get_task(recipe.task)
    model, processor = (
        AutoModelForImageClassification.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    facts = collect_facts(recipe, task, loaded, None, model, processor)
    trainer = SimpleNamespace(
        model=model,
        state=TrainerState(),
        progress=SimpleNamespace(total_seconds=lambda: 1.0),
        accelerator=SimpleNamespace(mixed_precision="no"),
        fitted=None,
    )
    for name in ("results.json", "README.md", "card.json"):
        (folder / name).unlink()
    monkeypatch.setattr(broken, lambda *args: 1 / 0)
    tested = [(loaded, task.dummy_predictions(loaded, loaded.labels)[0])]
    with caplog.at_level(logging.WARNING, "hf_medtl"):
        write_artifacts(recipe, task, folder, tested, trainer, {}, None, facts)
    assert json.loads((folder / "results.json").read_text())["n"] == before["n"]
    assert "could not be made (ZeroDivisionError: division by zero)" in caplog.text
    assert (folder / "README.md").exists() == ("plots" in broken)
    monkeypatch.undo()
    if "card" in broken:
        assert f"hf-medtl card write {folder}" in caplog.text
        run_cli("card", "write", folder)
        assert "# run" in (folder / "README.md").read_text("utf-8")
