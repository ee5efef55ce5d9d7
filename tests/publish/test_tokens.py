"""Access tokens given in the environment or a configuration file are neither written, printed nor uploaded."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.publish.checkpoints import BRANCH
from tests.support.commands import COMMAND, ROOT, configure_hub, flags, options

PLANTED = "hf_" + "Zy9" * 12


@pytest.fixture
def planted(hub, monkeypatch):
    """Let the Hub accept only the planted token."""
    configure_hub(hub, "__set", {"token": PLANTED})
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    yield
    configure_hub(hub, "__set", {"token": "hf_ci"})


@pytest.mark.slow
def test_token_is_in_no_output_file_or_upload(planted, process_pool, phantoms, tiny_checkpoint, tmp_path):
    folder, config, api = tmp_path / "run", tmp_path / "mine.yaml", HfApi()
    config.write_text(f"hub_token: {PLANTED}\nhub_model_id: ci-user/kept\n")
    overrides = {
        "hub_strategy": "checkpoint",
        "report_to": "tensorboard",
        "model_card": ROOT / "model_cards" / "phantoms.md",
    }
    values = options(phantoms, tiny_checkpoint("vit"), folder, config=config, push_to_hub=True, **overrides)
    process = process_pool.run_script("recipes/vit_brain.py", *flags(**values), HF_TOKEN=PLANTED)
    assert process.returncode == 0, process.stderr
    again = process_pool.run_script(COMMAND, "push", folder, "ci-user/kept-too", "--private", HF_TOKEN=PLANTED)
    assert again.returncode == 0, again.stderr
    texts = [process.stdout, process.stderr, again.stdout, again.stderr]
    assert not [text for text in texts if PLANTED in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != config]
    assert {"trainer_state.json", "recipe.yaml", "results.json"} <= {path.name for path in files}
    for repo, revision in (("ci-user/kept", "main"), ("ci-user/kept", BRANCH), ("ci-user/kept-too", "main")):
        names = api.list_repo_files(repo, revision=revision)
        assert "model.safetensors" in names
        files += [Path(hf_hub_download(repo, name, revision=revision)) for name in names]
    assert not [path for path in files if PLANTED.encode() in path.read_bytes()]


@pytest.mark.parametrize("option", ["run_name", "model_card"])
def test_rejects_token_in_saved_option_before_writing(option, phantoms, tiny_checkpoint, tmp_path):
    card = tmp_path / "card.md"
    card.write_text(f"Load it with {PLANTED}.")
    value = card if option == "model_card" else f"night with {PLANTED}"
    with pytest.raises(MedtlError, match="holds an access token") as error:
        run(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run", **{option: str(value)})))
    assert PLANTED not in str(error.value)
    assert not (tmp_path / "run").exists()
