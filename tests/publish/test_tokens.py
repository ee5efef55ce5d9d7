"""A token that is given in the environment, in a configuration file and to each command is nowhere afterwards."""

import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.publish.checkpoints import BRANCH
from tests.support.commands import COMMAND, ROOT, flags, options, script, tell

PLANTED = "hf_" + "Zy9" * 12


@pytest.fixture
def planted(hub, monkeypatch):
    """The Hub knows this token alone."""
    tell(hub, "__set", {"token": PLANTED})
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    yield
    tell(hub, "__set", {"token": "hf_ci"})


def test_no_file_and_no_word_holds_the_token(planted, phantoms, tiny, tmp_path):
    folder, config, api = tmp_path / "run", tmp_path / "mine.yaml", HfApi()
    config.write_text(f"hub_token: {PLANTED}\nhub_model_id: ci-user/kept\n")
    more = {
        "hub_strategy": "checkpoint",
        "report_to": "tensorboard",
        "model_card": ROOT / "model_cards" / "phantoms.md",
    }
    values = options(phantoms, tiny("vit"), folder, config=config, push_to_hub=True, **more)
    done = script(sys.executable, "recipes/vit_brain.py", *flags(**values))
    assert done.returncode == 0, done.stderr
    again = script(COMMAND, "push", folder, "ci-user/kept-too", "--private")
    assert again.returncode == 0, again.stderr
    texts = [done.stdout, done.stderr, again.stdout, again.stderr]
    assert not [text for text in texts if PLANTED in text]
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path != config]
    assert {"trainer_state.json", "recipe.yaml", "results.json"} <= {path.name for path in kept}
    for repo, revision in (("ci-user/kept", "main"), ("ci-user/kept", BRANCH), ("ci-user/kept-too", "main")):
        names = api.list_repo_files(repo, revision=revision)
        assert "model.safetensors" in names
        kept += [Path(hf_hub_download(repo, name, revision=revision)) for name in names]
    assert not [path for path in kept if PLANTED.encode() in path.read_bytes()]


@pytest.mark.parametrize("option", ["run_name", "model_card"])
def test_a_token_that_would_be_saved_is_refused_before_anything_is(option, phantoms, tiny, tmp_path):
    card = tmp_path / "card.md"
    card.write_text(f"Load it with {PLANTED}.")
    value = card if option == "model_card" else f"night with {PLANTED}"
    with pytest.raises(MedtlError, match="holds an access token") as error:
        run(Recipe(**options(phantoms, tiny("vit"), tmp_path / "run", **{option: str(value)})))
    assert PLANTED not in str(error.value)
    assert not (tmp_path / "run").exists()
