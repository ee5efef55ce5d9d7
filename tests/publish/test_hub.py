"""Push to a Hub on the loopback address, and load again as somebody else would."""

import pytest
from huggingface_hub import HfApi

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.publish.hub import push
from tests.support.commands import ROOT, options
from tests.support.strangers import as_a_stranger


@pytest.fixture(scope="module")
def pushed(hub, phantoms, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed") / "run"
    return run(
        Recipe(
            **options(
                phantoms,
                tiny("vit"),
                folder,
                push_to_hub=True,
                hub_model_id="ci-user/phantom-vit",
                model_card=str(ROOT / "model_cards" / "phantoms.md"),
            )
        )
    )


def test_only_what_a_model_page_needs_is_uploaded(pushed):
    files = set(HfApi().list_repo_files("ci-user/phantom-vit"))
    assert files == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml",
        "results.json", "splits.csv", "predictions.csv", "figures/history.png", "figures/confusion_matrix.png",
        "figures/roc.png", "figures/reliability.png", "figures/risk_coverage.png", "outliers.safetensors",
        "handler.py", "requirements.txt",
    }  # fmt: skip


def test_a_stranger_gets_the_same_numbers_by_id(pushed, phantoms, tmp_path):
    import json

    results = json.loads((pushed / "results.json").read_text())
    found = as_a_stranger("ci-user/phantom-vit", pushed, phantoms, HF_HOME=str(tmp_path))
    assert found == {name: results["metrics"][name]["value"] for name in ("accuracy", "roc_auc")}


def test_the_card_on_the_hub_names_the_repo(pushed):
    info = HfApi().model_info("ci-user/phantom-vit")
    assert info.pipeline_tag == "image-classification"
    assert 'model="ci-user/phantom-vit"' in (pushed / "README.md").read_text()


def test_an_unchanged_push_makes_no_commit(pushed):
    before = HfApi().model_info("ci-user/phantom-vit").sha
    push(pushed, "ci-user/phantom-vit")
    assert HfApi().model_info("ci-user/phantom-vit").sha == before


def test_unfinished_runs_and_refusals(pushed, tmp_path, monkeypatch):
    with pytest.raises(MedtlError, match="not a finished run"):
        push(tmp_path, "ci-user/nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(MedtlError, match="hf auth login") as error:
        push(pushed, "ci-user/other")
    assert "hf_wrong" not in str(error.value)


def test_without_the_flag_nothing_leaves(hub, finished):
    assert "finished" not in {model.id.split("/")[1] for model in HfApi().list_models(author="ci-user")}
