"""Models trained on synthetic images say that their answers on real images mean nothing."""

import json
import logging

import pytest

from hf_medtl import Predictor


@pytest.mark.parametrize("synthetic", [True, False])
def test_predictor_warns_of_a_model_of_synthetic_images(synthetic, publishable_run, caplog):
    path = publishable_run / "config.json"
    config = json.loads(path.read_text())
    assert config["synthetic_data"] is True
    path.write_text(json.dumps(config | {"synthetic_data": synthetic}))
    with caplog.at_level(logging.WARNING, "hf_medtl"):
        Predictor.from_pretrained(publishable_run)
    assert ("trained on synthetic images: its answers on real images mean nothing" in caplog.text) is synthetic
