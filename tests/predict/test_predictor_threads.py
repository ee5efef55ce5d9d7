"""One Predictor in many threads: each image keeps its own features, maps and dropout."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_medtl import Predictor
from hf_medtl.evaluation.ood import OutOfDistributionScorer
from hf_medtl.evaluation.outliers import Outliers
from hf_medtl.explain.attention import attention_weights
from hf_medtl.explain.maps import explain, to_pixel_values
from hf_medtl.models.cnn import MedicalCnnConfig, MedicalCnnForImageClassification
from hf_medtl.models.copies import shared_copy


@pytest.fixture(scope="module")
def predictor():
    """A tiny vision transformer with dropout and a scorer of out-of-distribution images."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(image_size=32, patch_size=8, hidden_dropout_prob=0.3, **shape)
    config.update({"outliers": {"threshold": 1.0}})
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 32)).astype(np.float32)
    scorer = OutOfDistributionScorer.fit(features, np.arange(60) % 2)
    return Predictor(ViTForImageClassification(config), ViTImageProcessor(size={"height": 32, "width": 32}), scorer)


def noise(seed: int, top: int = 255) -> Image.Image:
    pixels = np.random.default_rng(seed).random((40, 40)) * top
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def test_threads_get_the_answers_of_their_own_images(predictor):
    def ask(job):
        number, method = job
        batch = [noise(3 * number + i, top) for i, top in enumerate((255, 120, 60))]
        return predictor.predict(batch, explain=method, mc_dropout=number % 3 == 1)

    jobs = [(i, (None, "gradcam", "rollout", "scorecam")[i % 4]) for i in range(12)]
    alone = [ask(job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        together = [*pool.map(ask, jobs * 3)]
    for job, expected, found in zip(jobs * 3, alone * 3, together, strict=True):
        for one, other in zip(expected, found, strict=True):
            assert other.outlier == pytest.approx(one.outlier, rel=1e-4)
            if job[0] % 3 != 1:  # dropout draws anew
                assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)
            if job[1] and one.label == other.label:
                np.testing.assert_allclose(other.map, one.map, atol=1e-3)


def test_explain_in_threads_beside_other_uses_of_the_model(predictor):
    model, processor = predictor.model, predictor.processor
    images = [noise(i) for i in range(8)]
    maps = [explain(model, processor, [image])[0].map for image in images]
    plain = [predictor.predict(image)[0].outlier for image in images]
    weights = [attention_weights(model, to_pixel_values(processor, [image]))[1] for image in images]
    with ThreadPoolExecutor(6) as pool:
        again = [pool.submit(explain, model, processor, [image]) for image in images]
        calls = [pool.submit(predictor.model, to_pixel_values(processor, [image])) for image in images]
        scores = [pool.submit(predictor.predict, image) for image in images]
        attention = [pool.submit(attention_weights, model, to_pixel_values(processor, [image])) for image in images]
    for i in range(len(images)):
        np.testing.assert_allclose(again[i].result()[0].map, maps[i], atol=1e-3)
        assert scores[i].result()[0].outlier == pytest.approx(plain[i], rel=1e-4)
        assert torch.allclose(attention[i].result()[1], weights[i], atol=1e-5)
        assert calls[i].result().logits.requires_grad  # the caller's own calls are as ever
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model.config._attn_implementation != "eager"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_shared_copy_has_the_same_weights_and_its_own_hooks():
    model = MedicalCnnForImageClassification(MedicalCnnConfig(widths=[8, 16])).train()
    copy = shared_copy(model)
    copy.eval().blocks.register_forward_hook(lambda *_: None)
    copy.config.num_channels = 1
    assert model.training and model.config.num_channels == 3 and not model.blocks._forward_hooks
    for (name, one), (other_name, other) in zip(model.state_dict().items(), copy.state_dict().items(), strict=True):
        assert name == other_name
        assert one.data_ptr() == other.data_ptr()
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    model.blocks[0][1].running_mean.fill_(7)
    assert (copy.blocks[0][1].running_mean == 7).all()


def test_former_name_of_the_scorer():
    assert Outliers is OutOfDistributionScorer
