"""Sanity verdict on heatmaps: passes for a trained model, fails for random weights and constant maps."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from hf_medtl import MedtlError
from hf_medtl.data.phantoms import draw_brain
from hf_medtl.explain.faithfulness import deletion_insertion_curves, pixel_ranks, random_maps, road
from hf_medtl.explain.localization import energy_fraction
from hf_medtl.explain.maps import explain, to_pixel_values
from hf_medtl.explain.randomisation import _randomise, cascading_randomisation, similarity, ssim
from hf_medtl.explain.sanity import CHECKS, verdict
from hf_medtl.models.cnn import MedicalCnnConfig, MedicalCnnForImageClassification
from hf_medtl.models.processor import MedicalImageProcessor

SIZE, TRAINED, HELD_OUT = 64, 80, 12  # pixels; patients, each with and without a lesion
PROCESSOR = MedicalImageProcessor(size={"height": SIZE, "width": SIZE})


def phantoms(first, number, lesions=(True, False)):
    """Draw images, labels and lesion masks."""
    drawn = [draw_brain(patient, 0, ill, size=SIZE) for patient in range(first, first + number) for ill in lesions]
    images = [Image.fromarray(phantom.image).convert("RGB") for phantom in drawn]
    return images, np.array([phantom.label == "lesion" for phantom in drawn], int), [p.mask > 0 for p in drawn]


@pytest.fixture(scope="module")
def trained():
    """Train a network of 24,000 weights to classify lesions, with feature maps of stride 4."""
    images, labels, _ = phantoms(0, TRAINED)
    pixels, truth = to_pixel_values(PROCESSOR, images), torch.from_numpy(labels)
    torch.manual_seed(0)
    names = {"id2label": {0: "no_lesion", 1: "lesion"}, "label2id": {"no_lesion": 0, "lesion": 1}}
    config = MedicalCnnConfig(widths=(16, 32, 64), convolutions=1, attention=False, image_size=SIZE, **names)
    model = MedicalCnnForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0.05)
    batches = [batch for _ in range(18) for batch in torch.randperm(len(pixels)).split(20)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=len(batches))
    for i, batch in enumerate(batches):
        inputs = pixels[batch].flip(3) if i % 2 else pixels[batch]
        loss = torch.nn.functional.cross_entropy(model(inputs).logits, truth[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def lesions():
    """Draw images of other patients, all with a lesion, and the lesion masks."""
    images, _, masks = phantoms(1000, HELD_OUT, lesions=(True,))
    return images, masks


def randomised(model, seed):
    """Return a copy of the network with random weights."""
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for module in copied.modules():
        _randomise(module, generator)
    return copied


def uniform(model, pixels, classes, layer):
    """Return constant maps, as a heatmap method."""
    return np.ones((len(pixels), *pixels.shape[-2:]), np.float32)


def ratio(model, images, masks):
    """Return the fraction of energy inside the lesion divided by its area fraction, as a mean over images."""
    fractions = [
        energy_fraction(item.map, mask)
        for item, mask in zip(explain(model, PROCESSOR, images, "lesion"), masks, strict=True)
    ]
    return np.mean([inside / area for inside, area in fractions])


@pytest.mark.slow
def test_trained_heatmaps_lie_on_lesion(trained, lesions):
    assert ratio(trained, *lesions) >= 5
    assert np.mean([ratio(randomised(trained, seed), *lesions) for seed in range(5)]) < 1.5


@pytest.mark.slow
def test_verdict_separates_trained_from_random_and_constant(trained, lesions):
    images, masks = lesions
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    good = verdict(trained, PROCESSOR, images, "lesion", masks=masks)
    assert good["passed"], good["summary"]
    assert good["failed"] == []
    assert set(good["checks"]) == set(CHECKS)
    assert good["energy"]["ratio"] >= 5
    assert good["cascade"][-1]["share"] == pytest.approx(1)
    assert good["agreement"]["gradcam++"] > 0.3
    assert "pass all 6 checks on 12 images" in good["summary"]
    assert json.loads(json.dumps(good, allow_nan=False)) == good
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    for seed in range(3):  # without masks, too
        bad = verdict(randomised(trained, seed), PROCESSOR, images, "lesion")
        assert {"deletion_insertion", "road"} <= set(bad["failed"])
    blind = verdict(trained, PROCESSOR, images, "lesion", uniform, masks=masks)
    assert blind["constant"] == len(images)
    assert {"weights_spearman", "weights_ssim", "deletion_insertion", "road", "energy"} == set(blind["failed"])
    assert blind["summary"].startswith("Do not trust the heatmaps of uniform: 5 of 6 checks fail")


@pytest.mark.slow
def test_integrated_gradients_fail_randomisation_check(trained, lesions):
    result = verdict(trained, PROCESSOR, lesions[0][:4], "lesion", "integrated_gradients", others=())
    assert "weights_spearman" in result["failed"]  # a result of Adebayo et al.


def test_cascade_starts_at_head(trained, lesions):
    pixels = to_pixel_values(PROCESSOR, lesions[0][:4])
    steps = cascading_randomisation(trained, pixels, np.ones(4, int), "eigencam", steps=4)
    fractions = [step["share"] for step in steps]
    assert fractions == sorted(fractions)
    head = trained.classifier.weight.numel() + 2
    assert fractions[0] == pytest.approx(head / trained.num_parameters())
    assert steps[0]["spearman"] == pytest.approx(1)  # Eigen-CAM is independent of the head
    assert steps[-1]["spearman"] < 0.5
    assert cascading_randomisation(trained, pixels, np.ones(4, int), "eigencam", steps=4) == steps


def test_similarity_of_equal_random_inverted_and_constant_maps():
    first, second = np.random.default_rng(0).random((2, 40, 50), np.float32)
    flat = np.zeros_like(first)
    assert similarity(first, first) == pytest.approx((1, 1))
    assert abs(similarity(first, second).spearman) < 0.1
    assert similarity(first, 1 - first).spearman == pytest.approx(-1)
    assert similarity(first, first**3).spearman == pytest.approx(spearmanr(first.ravel(), first.ravel() ** 3).statistic)
    assert similarity(flat, flat) == (1, 1)
    assert similarity(flat, first) == similarity(first, flat) == (0, 0)
    assert ssim(first, second) < 0.2
    assert ssim(flat, flat + 1) < 1e-3


def test_curves_follow_map_order(trained, lesions):
    pixels = to_pixel_values(PROCESSOR, lesions[0][:4])
    classes = np.ones(4, int)
    truth = np.stack(lesions[1][:4]).astype(np.float32)
    result = deletion_insertion_curves(trained, pixels, classes, truth, steps=10)
    assert result.deletion.shape == result.insertion.shape == (4, 11)
    np.testing.assert_allclose(result.deletion[:, 0], result.insertion[:, -1], atol=1e-6)  # the image itself
    np.testing.assert_allclose(result.deletion[:, -1], result.insertion[:, 0], atol=1e-6)  # everything is deleted
    assert result.gain().mean() > 0.2
    inverted = deletion_insertion_curves(trained, pixels, classes, 1 - truth, steps=10)
    assert inverted.gain().mean() < 0
    assert road(trained, pixels, classes, truth, (90,)).mean() > road(trained, pixels, classes, 1 - truth, (90,)).mean()
    again = road(trained, pixels, classes, truth, (90,))
    np.testing.assert_array_equal(road(trained, pixels, classes, truth, (90,)), again)


def test_ranks_break_ties_randomly_and_are_unique():
    maps = np.zeros((2, 10, 10), np.float32)
    maps[:, 3:5, 3:5] = 1
    result = pixel_ranks(maps, seed=1)
    assert sorted(result[0].ravel()) == pytest.approx(np.arange(1, 101) / 100)
    assert (result[0][3:5, 3:5] > 0.96).all()
    assert abs(spearmanr(result[0].ravel(), np.arange(100)).statistic) < 0.3
    assert random_maps(3, (20, 30)).shape == (3, 20, 30)


def test_energy_fraction_gives_energy_and_area_inside_the_mask():
    values, mask = np.zeros((10, 10), np.float32), np.zeros((10, 10), bool)
    values[:5], mask[:, :5] = 1, True
    assert energy_fraction(values, mask) == (0.5, 0.5)
    mask[5:] = False
    assert energy_fraction(values, mask) == (0.5, 0.25)
    assert energy_fraction(np.zeros_like(values), mask) == (0.25, 0.25)
    with pytest.raises(MedtlError, match="must have the size of its image"):
        energy_fraction(values, mask[:5])


def test_verdict_without_images_or_masks_raises(trained, lesions):
    with pytest.raises(MedtlError, match="found 0 images"):
        verdict(trained, PROCESSOR, [])
    with pytest.raises(MedtlError, match="12 images and 3 masks"):
        verdict(trained, PROCESSOR, lesions[0], masks=lesions[1][:3])
