"""Runs of linear_probe and knn: a plain model or figures alone, without options of training steps."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from transformers import AutoModelForImageClassification, pipeline

from hf_medtl import MedtlError, Predictor, Recipe, run
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.models.build import build_classifier
from hf_medtl.publish.check import check_card, check_run_files
from hf_medtl.runs.compare import compare_runs, measure_costs
from hf_medtl.runs.cross_validation import summarise
from hf_medtl.runs.model_card import rewrite_card
from hf_medtl.runs.preflight import build
from hf_medtl.runs.preprocessing import preprocess_splits
from hf_medtl.runs.search_space import check_search
from hf_medtl.runs.study_cells import count_passes, list_arms, match_steps
from hf_medtl.runs.study_grid import Grid
from hf_medtl.runs.train import make_trainer
from hf_medtl.runs.verify import verify
from hf_medtl.training.features import check_pooled
from hf_medtl.training.flags import all_flags
from hf_medtl.training.linear_probe import fit_linear_probe
from hf_medtl.training.options import FITTED_STRATEGIES, STEP_OPTIONS
from hf_medtl.training.presets import PRESETS
from tests.support.commands import options

BOTH = pytest.mark.parametrize("strategy", FITTED_STRATEGIES)


def fitted_options(phantoms, backbone, output, **more):
    """Return the options of a quick run without training steps."""
    chosen = options(phantoms, backbone, output, **more)
    return {name: value for name, value in chosen.items() if name not in STEP_OPTIONS}


@pytest.fixture(scope="module")
def fitted_runs(phantoms, tiny_checkpoint, tmp_path_factory):
    """Return the folders of a run of each strategy, on the split of `finished_run`; knn also on an external set."""
    folder = tmp_path_factory.mktemp("fitted")
    for i in range(6):
        place = folder / "external" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    for strategy in FITTED_STRATEGIES:
        more = {"external_dataset": "imagefolder", "external_data_dir": str(folder / "external"),
                "external_labels": "a=no_lesion,b=lesion", "positive_label": "lesion"}  # fmt: skip
        external = more if strategy == "knn" else {}
        chosen = fitted_options(phantoms, tiny_checkpoint("vit"), folder / strategy, strategy=strategy, **external)
        run(Recipe(**chosen))
    return {strategy: folder / strategy for strategy in FITTED_STRATEGIES}


def make_fitted_trainer(recipe):
    """Return the trainer of a recipe, and its data set."""
    loaded = recipe.load_data()
    return make_trainer(recipe, loaded, *build(recipe, loaded)), loaded


def test_linear_probe_is_the_head_of_a_plain_model(fitted_runs, phantoms, tiny_checkpoint, tmp_path):
    folder = fitted_runs["linear_probe"]
    finished = RunFolder(folder).check_finished()
    backbone = tiny_checkpoint("vit")
    saved = AutoModelForImageClassification.from_pretrained(folder)
    before = AutoModelForImageClassification.from_pretrained(backbone).state_dict()
    after = saved.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("classifier"))
    recipe = Recipe(**fitted_options(phantoms, backbone, tmp_path / "run", strategy="linear_probe"))
    trainer, _ = make_fitted_trainer(recipe)
    features = trainer.head_inputs(trainer.train_dataset).numpy()
    targets = np.array(trainer.train_dataset.labels)
    assert trainer.train_dataset.augment is None
    probe = fit_linear_probe(features, targets, trainer.groups, seed=1)
    assert finished.results["fitted"]["C"] == probe.facts["C"]
    temperature = finished.results["temperature"]
    assert after["classifier.weight"].numpy() == pytest.approx(probe.weight / temperature, rel=1e-3, abs=1e-4)
    assert after["classifier.bias"].numpy() == pytest.approx(probe.bias / temperature, rel=1e-3, abs=1e-4)
    row = finished.predictions.iloc[0]
    outputs = pipeline("image-classification", model=str(folder))(str(phantoms / row["image_id"]), top_k=None)
    assert {output["label"]: output["score"] for output in outputs}["lesion"] == pytest.approx(
        row["p_lesion"], abs=1e-4
    )


def test_recipe_and_card_tell_of_no_training_steps(fitted_runs):
    for strategy, folder in fitted_runs.items():
        recipe, card = RunFolder(folder).recipe, (folder / "README.md").read_text(encoding="utf-8")
        assert recipe["strategy"] == strategy
        assert not {*recipe} & {*STEP_OPTIONS}
        assert "history.png" not in card and not (folder / "figures" / "history.png").exists()
        assert "epochs" not in card and "fine-tuned" not in card
    assert "C = " in (fitted_runs["linear_probe"] / "README.md").read_text(encoding="utf-8")


def test_neighbours_leave_figures_and_no_model(fitted_runs):
    folder = fitted_runs["knn"]
    finished = RunFolder(folder).check_finished()
    results, card = finished.results, (folder / "README.md").read_text(encoding="utf-8")
    assert results["fitted"]["strategy"] == "knn" and results["fitted"]["k"] >= 1
    assert results["external"]["n"] == 6
    assert not [*folder.glob("*.safetensors"), *folder.glob("config.json"), *folder.glob("*.npy")]
    assert "## There is no model" in card and "from_pretrained" not in card and "pipeline" not in card
    probabilities = finished.predictions[["p_no_lesion", "p_lesion"]].to_numpy()
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert probabilities.min() > 0
    decided = probabilities[:, 1] >= results["threshold"]
    labels = finished.predictions["label"] == "lesion"
    assert (decided == labels).mean() == pytest.approx(results["metrics"]["accuracy"]["value"])
    assert verify(folder).problems == []


def test_probabilities_of_neighbours_are_calibrated_votes(fitted_runs, phantoms, tiny_checkpoint, tmp_path):
    backbone = tiny_checkpoint("vit")
    recipe = Recipe(**fitted_options(phantoms, backbone, tmp_path / "run", strategy="knn"))
    trainer, loaded = make_fitted_trainer(recipe)
    trainer.train()
    results, table = RunFolder(fitted_runs["knn"]).results, RunFolder(fitted_runs["knn"]).predictions
    images = preprocess_splits(recipe, loaded, trainer.processing_class, splits=["test"])["test"]
    votes = trainer.fitted.logits(trainer.head_inputs(images))
    expected = softmax(votes / results["temperature"], axis=1)
    assert loaded.rows("test")["image_id"].tolist() == table["image_id"].tolist()
    assert table[["p_no_lesion", "p_lesion"]].to_numpy() == pytest.approx(expected, abs=1e-4)


def test_what_needs_a_model_refuses_neighbours_in_one_sentence(fitted_runs):
    for use in (Predictor.from_pretrained, check_run_files):
        with pytest.raises(MedtlError, match="--strategy knn, which measures an encoder and has no model"):
            use(fitted_runs["knn"])


def test_card_can_be_written_again_without_a_model(fitted_runs, tmp_path):
    folder = shutil.copytree(fitted_runs["knn"], tmp_path / "knn")
    before = (folder / "README.md").read_text(encoding="utf-8")
    rewrite_card(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == before
    assert not (folder / "config.json").exists()
    assert check_card(folder).data.pipeline_tag is None


def test_fitted_and_trained_runs_are_compared(fitted_runs, finished_run):
    comparison = compare_runs([finished_run, *fitted_runs.values()])
    assert {*comparison.runs} == {"finished", "linear_probe", "knn"}
    costs = measure_costs(comparison.runs, device=None).table
    assert np.isnan(costs.loc["knn", "parameters"]) and costs.loc["linear_probe", "parameters"] > 0


def test_folds_of_neighbours_are_summarised(fitted_runs, phantoms, tiny_checkpoint, tmp_path):
    recipe = Recipe(**fitted_options(phantoms, tiny_checkpoint("vit"), tmp_path / "folds", strategy="knn", folds=2))
    (tmp_path / "folds").mkdir()
    for fold in range(2):
        shutil.copytree(fitted_runs["knn"], tmp_path / "folds" / f"fold-{fold}")
    summary = RunFolder(tmp_path / "folds")
    runs = [RunFolder(path) for path in sorted(summary.path.glob("fold-*"))]
    results = summarise(summary, runs, recipe, recipe.of_fold(0).load_data())
    assert results["folds"][1]["fitted"]["strategy"] == "knn"
    assert summary.only_measures
    assert verify(summary.path).problems == []


@BOTH
@pytest.mark.parametrize(
    "option",
    [{"learning_rate": 1e-3}, {"num_train_epochs": 3}, {"augmentation": "brain"}, {"lora_rank": 4}, {"mixup": 0.2},
     {"cache_features": False}, {"feature_views": 2}, {"loss": "focal"}, {"head_dropout": 0.5},
     {"image_size": "128:5,224"}],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_options_of_training_steps_are_refused(strategy, option):
    with pytest.raises(MedtlError, match=f"--{next(iter(option))}"):
        Recipe(strategy=strategy, use_cpu=True, **option)


def test_options_without_steps_exist_and_masks_and_publishing_are_refused(phantoms, tmp_path):
    assert {*STEP_OPTIONS} <= {*all_flags(), "activation_checkpointing"}  # the latter since transformers 5.23
    with pytest.raises(MedtlError, match="no model to publish"):
        Recipe(strategy="knn", push_to_hub=True, use_cpu=True)
    recipe = Recipe(strategy="knn", task="image-segmentation", dataset="imagefolder", use_cpu=True,
                    data_dir=str(phantoms), model_name_or_path="unet", output_dir=str(tmp_path / "run"))  # fmt: skip
    with pytest.raises(MedtlError, match="for segmentation, but is 'knn'"):
        run(recipe)


def test_steps_of_a_preset_are_left_out_but_not_those_of_the_command():
    recipe = Recipe.from_cli(PRESETS["vit_brain"], ["--strategy", "linear_probe", "--use_cpu"])
    assert recipe.learning_rate == Recipe(use_cpu=True).learning_rate
    assert recipe.augmentation == "none"
    assert "learning_rate" not in recipe.to_yaml() and "augmentation" not in recipe.to_yaml()
    with pytest.raises(MedtlError, match="--learning_rate"):
        Recipe.from_cli(PRESETS["vit_brain"], ["--strategy", "linear_probe", "--learning_rate", "0.1", "--use_cpu"])


def test_recipe_file_with_steps_serves_a_probe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("strategy: lora\nlearning_rate: 0.1\nseed: 3\n", encoding="utf-8")
    config = ["--config", str(tmp_path / "recipe.yaml"), "--use_cpu"]
    assert Recipe.from_cli({}, [*config, "--strategy", "knn"]).seed == 3
    (tmp_path / "recipe.yaml").write_text("strategy: knn\nlearning_rate: 0.1\n", encoding="utf-8")
    with pytest.raises(MedtlError, match="--learning_rate"):
        Recipe.from_cli({}, config)


def test_search_tries_probes_beside_trained_strategies():
    recipe = Recipe(search=3, use_cpu=True, learning_rate=1e-3, metric_for_best_model="roc_auc",
                    search_space={"strategy": ["full", "linear_probe", "knn"], "learning_rate": [1e-5, 1e-2, "log"],
                                  "class_weights": ["none", "balanced"]})  # fmt: skip
    assert check_search(recipe)["strategy"] == ["full", "linear_probe", "knn"]
    assert recipe.variant(strategy="knn").learning_rate != 1e-3
    with pytest.raises(MedtlError, match=r"--search_space, learning_rate.*no training steps"):
        check_search(Recipe(search=3, use_cpu=True, strategy="knn", search_space={"learning_rate": [1e-5, 1e-2]}))
    with pytest.raises(MedtlError, match="nothing to try with --strategy linear_probe"):
        check_search(Recipe(search=3, use_cpu=True, strategy="linear_probe"))


def test_study_has_arms_without_steps():
    recipe = Recipe(use_cpu=True, learning_rate=1e-3, num_train_epochs=4)
    grid = Grid(models=("a/b",), strategies=("full", "linear_probe", "knn"), options={"a/b": {"mixup": 0.2}})
    arms = list_arms(recipe, grid)
    assert [arm.options.get("mixup") for arm in arms] == [0.2, None, None]
    for arm in arms[1:]:
        cell = recipe.variant(**arm.options)
        assert match_steps(cell, 10, 100) is cell
        assert count_passes(cell, 100, 10, 20) == 100 + 2 * 10 + 2 * 20


def test_model_whose_logits_are_not_of_one_head_is_refused_before(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    from hf_medtl.runs import preflight

    built = preflight.build

    def odd(recipe, loaded):
        model, processor, loss = built(recipe, loaded)
        usual = model.forward

        def forward(**inputs):
            outputs = usual(**inputs)
            outputs.logits = outputs.logits * 2
            return outputs

        model.forward = forward
        return model, processor, loss

    monkeypatch.setattr(preflight, "build", odd)
    with pytest.raises(MedtlError, match="one linear layer on one vector per image"):
        preflight.check(Recipe(**fitted_options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", strategy="knn")))


@pytest.mark.parametrize("family", ["vit", "dinov2", "deit", "swin", "convnext", "timm"])
def test_encoders_of_all_kinds_have_one_vector_for_the_head(family, tiny_checkpoint):
    model, _ = build_classifier(str(tiny_checkpoint(family)), ("a", "b", "c"))
    size = 64 if family == "timm" else 32
    check_pooled(model, torch.randn(2, 3, size, size))


def test_features_that_are_not_finite_are_an_error(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    recipe = Recipe(**fitted_options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", strategy="linear_probe"))
    trainer, _ = make_fitted_trainer(recipe)
    monkeypatch.setattr(trainer, "head_inputs", lambda images: torch.full((len(images), 16), torch.nan))
    with pytest.raises(MedtlError, match="not finite"):
        trainer.train()


def test_results_of_older_runs_have_no_fit(finished_run):
    assert not RunFolder(finished_run).only_measures
    assert "fitted" not in json.loads((finished_run / "results.json").read_text(encoding="utf-8"))
