"""Push to a loopback Hub, and load from it with stock code in another process."""

import json

import pytest
from huggingface_hub import HfApi

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.publish.hub import push
from tests.support.commands import ROOT, options
from tests.support.evaluation_script import EVALUATION_SCRIPT, printed_metrics


@pytest.fixture(scope="module")
def pushed(hub, phantoms, tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed") / "run"
    return run(
        Recipe(
            **options(
                phantoms,
                tiny_checkpoint("vit"),
                folder,
                push_to_hub=True,
                hub_model_id="ci-user/phantom-vit",
                model_card=str(ROOT / "model_cards" / "phantoms.md"),
            )
        )
    )


@pytest.mark.slow
def test_uploads_only_files_of_a_model_page(pushed):
    files = set(HfApi().list_repo_files("ci-user/phantom-vit"))
    assert files == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml",
        "results.json", "splits.csv", "predictions.csv", "figures/history.png", "figures/confusion_matrix.png",
        "figures/roc.png", "figures/reliability.png", "figures/risk_coverage.png", "outliers.safetensors",
        "handler.py", "requirements.txt",
    }  # fmt: skip


@pytest.mark.slow
def test_stock_code_reproduces_metrics_by_repo_id(pushed, stock_pool, phantoms):
    results = json.loads((pushed / "results.json").read_text())
    metrics = printed_metrics(stock_pool.run_code(EVALUATION_SCRIPT, "ci-user/phantom-vit", pushed, phantoms))
    assert metrics == {name: results["metrics"][name]["value"] for name in ("accuracy", "roc_auc")}


def test_card_and_hub_metadata_name_the_repo(pushed):
    info = HfApi().model_info("ci-user/phantom-vit")
    assert info.pipeline_tag == "image-classification"
    assert 'model="ci-user/phantom-vit"' in (pushed / "README.md").read_text()


def test_unchanged_push_makes_no_commit(pushed):
    before = HfApi().model_info("ci-user/phantom-vit").sha
    push(pushed, "ci-user/phantom-vit")
    assert HfApi().model_info("ci-user/phantom-vit").sha == before


def test_rejects_unfinished_run_and_wrong_token_without_showing_it(pushed, tmp_path, monkeypatch):
    with pytest.raises(MedtlError, match="not a finished run"):
        push(tmp_path, "ci-user/nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(MedtlError, match="hf auth login") as error:
        push(pushed, "ci-user/other")
    assert "hf_wrong" not in str(error.value)


def test_run_without_push_to_hub_uploads_nothing(hub, finished_run):
    assert "finished" not in {model.id.split("/")[1] for model in HfApi().list_models(author="ci-user")}
