"""One Predictor, and one model of the Space, shared by eight threads: every image gets the answers of its own.

`make test` asks for a few images of each model; with HF_MEDTL_FAULTS set, it asks for 2,000.
"""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, cycle, islice

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_medtl import MedtlError, Predictor
from hf_medtl.evaluation.ood import OutOfDistributionScorer
from hf_medtl.explain.attention import attention_head_maps
from hf_medtl.explain.maps import METHODS, to_pixel_values
from hf_medtl.models.cnn import MedicalCnnConfig, MedicalCnnForImageClassification
from hf_medtl.models.ensemble import EnsembleConfig, EnsembleForImageClassification
from hf_medtl.models.processor import MedicalImageProcessor
from hf_medtl.space import inference
from hf_medtl.space.inference import HeatmapRequest
from hf_medtl.space.registry import ATTENTION_HEAD, SLOW_METHODS, ServedModel
from tests.support.tiny_models import build_tiny

REPEATS, THREADS, LABELS = 2, 8, 3
IMAGES = 2000 if os.environ.get("HF_MEDTL_FAULTS") else 1  # of each model, at least
TOLERANCE = {"probabilities": 1e-5, "outlier": 1e-3, "map": 2e-3, "mask": 0.0}


def vit_config() -> ViTConfig:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTConfig(image_size=32, patch_size=8, hidden_dropout_prob=0.3, num_labels=LABELS, **shape)


def cnn_config() -> MedicalCnnConfig:
    return MedicalCnnConfig(widths=[8, 16], num_labels=LABELS)


def make_processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": 32, "width": 32})


def with_scorer(model, processor, width: int) -> Predictor:
    model.config.update({"outliers": {"threshold": 1.0}})
    features = np.random.default_rng(0).normal(size=(60, width)).astype(np.float32)
    return Predictor(model, processor, OutOfDistributionScorer.fit(features, np.arange(60) % LABELS))


def make_vit() -> Predictor:
    return with_scorer(ViTForImageClassification(vit_config()), make_processor(), 32)


def make_cnn() -> Predictor:
    processor = MedicalImageProcessor(size=32, steps=["brain_crop", "clahe"])
    return with_scorer(MedicalCnnForImageClassification(cnn_config()), processor, 16)


def make_ensemble() -> Predictor:
    members = []
    for config in (vit_config(), cnn_config()):
        config.dtype = torch.float32
        members.append({"config": config.to_dict(), "name": "x", "mean": [0.5] * 3, "std": [0.5] * 3})
    config = EnsembleConfig(members=members, num_labels=LABELS)
    return Predictor(EnsembleForImageClassification(config), make_processor())


def make_unet() -> Predictor:
    return Predictor(*build_tiny())


def noise(seed: int) -> Image.Image:
    """Return an image that differs from others in size, brightness and pixels."""
    rng = np.random.default_rng(seed)
    size = 40, 36 + 4 * (seed % 2), 3
    return Image.fromarray((rng.random(size) * (60 + 195 * rng.random())).astype(np.uint8))


def methods_of(predictor: Predictor) -> list[str | None]:
    """Return all heatmap methods that a model can have, and None."""
    methods: list[str | None] = [None]
    for method in ["uncertainty"] if predictor.is_segmentation else METHODS:
        try:
            predictor.predict(noise(0), explain=method)
            methods.append(method)
        except MedtlError:
            pass  # such as rollout of a model without attention
    return methods


def serve(predictor: Predictor, methods: list[str | None]) -> ServedModel:
    """Return a model of the Space that shares a predictor."""
    offered = tuple(method for method in methods if method and method not in SLOW_METHODS)
    model = ServedModel("tiny", "tiny", predictor, {}, {}, None, methods=offered)
    if "rollout" in methods and isinstance(predictor.model, ViTForImageClassification):
        pixels = to_pixel_values(predictor.processor, [noise(0)])
        model.heads = attention_head_maps(predictor.model, pixels).shape[1:3]
        model.methods += (ATTENTION_HEAD,)
    return model


def predict(predictor: Predictor, seed: int, method: str | None, tta: int) -> dict:
    """Return what is compared of the predictions of two images in a batch."""
    predictions = predictor.predict([noise(seed), noise(seed + 1)], explain=method, tta=tta, batch_size=2)
    return {
        f"{field}-{i}": value
        for i, one in enumerate(predictions)
        for field, value in {
            **{"label": one.label, "error": one.error, "map": one.map, "mask": one.mask},
            **{"outlier": one.outlier, "probabilities": [*one.probabilities.values()]},
        }.items()
    }


def ask_space(model: ServedModel, seed: int, method: str | None) -> dict:
    """Return what is compared of the answers of the Space to two images."""
    answers = {}
    for i, image in enumerate((noise(seed), noise(seed + 1))):
        if model.is_segmenter:
            mask, uncertainty, _ = inference.segment(model, image)
            answers |= {f"mask-{i}": mask, f"map-{i}": uncertainty}
        elif method is None:
            answer = inference.classify(model, image)
            answers[f"probabilities-{i}"] = [*answer["probabilities"].values()]
            answers |= {f"label-{i}": answer["label"], f"outlier-{i}": answer["outlier"]}
        else:
            values, description = inference.heatmap(model, image, HeatmapRequest(method, layer=2, head=2))
            answers |= {f"map-{i}": values, f"label-{i}": description.get("label")}
    return answers


def differing(one: dict, other: dict) -> list[str]:
    """Return the fields of two answers that are not those of the same images."""
    fields = []
    for field, value in one.items():
        tolerance = TOLERANCE.get(field.partition("-")[0])
        if tolerance is None or value is None or other[field] is None:
            equal = value is other[field] or value == other[field]
        else:
            equal = np.allclose(value, other[field], rtol=1e-3, atol=tolerance)
        if not equal:
            fields.append(field)
    return fields


@pytest.mark.parametrize("make", [make_vit, make_cnn, make_ensemble, make_unet])
def test_eight_threads_get_the_answers_of_their_own_images(make):
    torch.manual_seed(0)
    predictor = make()
    methods = methods_of(predictor)
    model = serve(predictor, methods)
    kinds = [
        *((predict, predictor, method, (2 * (i % 2),)) for i, method in enumerate(methods)),
        *((ask_space, model, method, ()) for method in ([None] if model.is_segmenter else [None, *model.methods])),
    ]
    quick = [kind for kind in kinds if kind[2] not in SLOW_METHODS]
    jobs = list(enumerate(islice(chain(kinds, cycle(quick)), max(len(kinds), IMAGES // (2 * REPEATS)))))

    def ask(job) -> dict:
        number, (function, target, method, more) = job
        return function(target, 2 * number, method, *more)

    alone = [ask(job) for job in jobs]
    dropping = any(isinstance(module, torch.nn.Dropout) and module.p for module in predictor.model.modules())
    with ThreadPoolExecutor(THREADS) as pool:
        beside = [pool.submit(predictor.predict, noise(1), mc_dropout=2) for _ in range(4 * dropping)]
        together = list(pool.map(ask, jobs * REPEATS))
        assert all(future.result()[0].spread > 0 for future in beside)
    mixed = [
        (job[0], job[1][0].__name__, job[1][2], fields)
        for job, expected, answer in zip(jobs * REPEATS, alone * REPEATS, together, strict=True)
        if (fields := differing(expected, answer))
    ]
    print(f"{make.__name__}: {2 * len(together)} images in {THREADS} threads, methods {methods}, {len(mixed)} mixed")
    assert not mixed
    assert len({pickle.dumps(answer) for answer in alone}) > len(alone) / 2  # not the same for all images
