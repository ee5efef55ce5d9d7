"""Explanation report of a split: gallery pages, a sanity verdict for each label, and heatmap statistics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedModel

from hf_medtl.common.files import write_atomic
from hf_medtl.common.progress import track
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.evaluation.metrics import decide
from hf_medtl.explain import gallery, statistics
from hf_medtl.explain.localization import Region, energy_in_region, summarise_energy
from hf_medtl.explain.maps import Explanation, explain, label_names, predict_probabilities, to_pixel_values
from hf_medtl.explain.sanity import verdict
from hf_medtl.models.heads import is_segmenter

SMALL_REGION = 0.2  # fraction of the image; only smaller regions make a verdict fail for too little energy inside
BORDER_AREA = 1 - (1 - 2 * statistics.BORDER) ** 2  # fraction of the image, and of a uniform map's energy
BATCH = 16  # images in memory at a time
TITLES = {
    "most_certain_right": "Right, and most certain",
    "most_certain_wrong": "Wrong, and most certain",
    "least_certain": "Least certain",
}


def check_supported(model: PreTrainedModel) -> None:
    """Raise MedtlError for a model that `write_report` does not support."""
    if is_segmenter(model) or model.config.problem_type == "multi_label_classification":
        raise MedtlError(
            f"The explanation report is for single-label classifiers, found {type(model).__name__}. For other models "
            "use hf_medtl.explain.maps.explain or hf_medtl.explain.segmentation.explain_masks."
        )


def write_report(
    model: PreTrainedModel,
    processor: Any,
    paths: Sequence[Path],
    labels: Sequence[str],
    read: Callable[[Path], Image.Image],
    out: Path,
    method: str = "gradcam",
    layer: str | None = None,
    number: int = 12,
    sample: int = 12,
    most: int = 200,
    seed: int = 0,
    region: Region | None = None,
    groups: Sequence[str] | None = None,
    image_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write explanations.json, a page of images for each of TITLES, mean_maps.png and centres.png.

    Each map explains the decided label, by the threshold in the model's configuration if it has one.

    Args:
        model: as for `explain`.
        processor: as for `explain`.
        paths: (n,) image files.
        labels: (n,) true labels.
        read: file -> RGB image.
        out: folder; created if needed.
        method: as for `explain`.
        layer: as for `explain`.
        number: images per page, at most.
        sample: images for the verdict on each label, at most, sampled from those decided to have it.
        most: images for the statistics, at most, sampled from all.
        seed: seed of all random choices.
        region: where heatmaps should be, measured for all maps of the statistics. A small region, such as a lesion, is
            an additional check of the verdict; lungs, a quarter of the image and more, are not.
        groups: (n,) patient or duplicate group of each image, for intervals; by default each image is its own group.
        image_names: (n,) what explanations.json calls the images; by default the names of the files.

    Returns:
        The content of explanations.json: for each label decided at least once a verdict, see `verdict`, with warnings,
        see `shortcut_warnings`, which its summary repeats; statistics, see
        `heatmap_statistics`; pages: name -> rows of picture, label, decided, probability; with a region energy, see
        `summarise_energy`.

    Raises:
        MedtlError: no images, labels that the model does not have, or as for `explain`.
    """
    check_supported(model)
    names = label_names(model)
    index = {name: i for i, name in names.items()}
    if not len(paths) or not set(labels) <= set(index):
        raise MedtlError(
            f"Expected images with the model's labels {', '.join(index)}; found {len(paths)} images with "
            f"{', '.join(sorted(set(labels))) or 'none'}."
        )
    out.mkdir(parents=True, exist_ok=True)
    rng, truth = np.random.default_rng(seed), np.array([index[label] for label in labels])
    batches = (paths[start : start + BATCH] for start in range(0, len(paths), BATCH))
    probabilities = np.concatenate(
        [
            predict_probabilities(model, to_pixel_values(processor, [read(path) for path in batch]))
            for batch in track(batches, f"Predicting {len(paths)} images", -(-len(paths) // BATCH), "batch")
        ]
    )
    rule = DecisionRule.from_config(model.config)
    positive, threshold = index.get(rule.positive or ""), rule.threshold
    if positive is None or len(names) != 2:
        positive, threshold = len(names) - 1, None
    decided = decide(probabilities, positive, threshold)

    def explanations(rows: NDArray[np.int64]) -> Iterator[tuple[Image.Image, Explanation]]:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            images = [read(paths[i]) for i in batch]
            yield from zip(
                images, explain(model, processor, images, decided[batch].tolist(), method, layer), strict=True
            )

    # Pages of examples.
    examples = gallery.select_examples(truth, decided, certainty(probabilities, positive, threshold), number)
    pages: dict[str, list[dict[str, Any]]] = {}
    for name, rows in examples.items():
        items, pages[name] = [], []
        for i, (image, item) in zip(rows, explanations(rows), strict=True):
            decision = f"{item.label} {item.probability:.2f}"
            caption = decision if decided[i] == truth[i] else f"{labels[i]}, predicted {decision}"
            items.append(gallery.GalleryItem(image, item.map, caption))
            row = {"picture": image_names[i] if image_names else paths[i].name, "label": labels[i]}
            pages[name].append(row | {"decided": item.label, "probability": item.probability})
        if items:
            gallery.draw_page(items, out / f"{name}.png", f"{TITLES[name]}: {method}")

    # A verdict for each label.
    verdicts = {}
    for i in np.unique(decided):
        rows = np.sort(rng.permutation(np.flatnonzero(decided == i))[:sample])
        images = [read(paths[row]) for row in rows]
        masks = region and [region.mask_for(paths[row], image) for row, image in zip(rows, images, strict=True)]
        if masks and np.mean([mask.mean() for mask in masks]) > SMALL_REGION:
            masks = None
        verdicts[names[int(i)]] = verdict(model, processor, images, int(i), method, layer, masks, seed=seed)

    # Statistics of a sample.
    rows = np.sort(rng.permutation(len(paths))[:most])
    maps, energies = [], []
    for i, (image, item) in zip(rows, explanations(rows), strict=True):
        maps.append(statistics.common_grid([item.map])[0])
        if region:
            energies.append(energy_in_region(item.map, region.mask_for(paths[i], image)))
    predicted = [names[int(i)] for i in decided[rows]]
    statistics.draw_figures(maps, predicted, out)
    result = {
        "method": method,
        "layer": layer,
        "n": len(paths),
        "seed": seed,
        "verdict": verdicts,
        "statistics": statistics.heatmap_statistics(maps, predicted, seed),
        "pages": pages,
    }
    if region:
        sampled_groups = [str(i) if groups is None else groups[i] for i in rows]
        result["energy"] = summarise_energy(region, energies, predicted, sampled_groups, seed)
    for label, facts in verdicts.items():
        facts["warnings"] = shortcut_warnings(result, label)
        facts["summary"] = " ".join([facts["summary"], *facts["warnings"]])
    write_atomic(out / "explanations.json", result)
    return result


def shortcut_warnings(report: Mapping[str, Any], label: str) -> list[str]:
    """Return signs that heatmaps of a label lie where no disease is, whatever the checks say: models learn shortcuts.

    Args:
        report: content of explanations.json, at least statistics and energy.
        label: the label that the heatmaps explain.

    Returns:
        Sentences: the frame of the image has more of the heatmaps' energy than of the image, or the region that should
        matter, such as the lungs, has not demonstrably more.
    """
    warnings = []
    border = report["statistics"]["by_label"].get(label, {}).get("border")
    if border is not None and border > BORDER_AREA:
        warnings.append(
            f"Warning: {border:.0%} of the heatmaps' energy lies in the outermost tenth of the images on each side, "
            f"which is {BORDER_AREA:.0%} of their area. Look for a shortcut there, such as text, markers or borders."
        )
    energy = report.get("energy", {"by_label": {}})
    facts = energy["by_label"].get(label)
    if facts:
        low = facts["ratio"]["value"] if facts["ratio"]["low"] is None else facts["ratio"]["low"]
        if low <= 1:
            warnings.append(
                f"Warning: the heatmaps do not favour the {energy['region']}: {1 - facts['inside']['value']:.0%} of "
                "their energy lies outside. Look for a shortcut there."
            )
    return warnings


def certainty(probabilities: NDArray[np.float64], positive: int, threshold: float | None) -> NDArray[np.float64]:
    """Return the certainty of decisions (n,), from 0 for a borderline decision to 1.

    With a threshold, the distance of the probability from it, relative to its maximum (to 0 or 1); without one, the
    difference of the two highest probabilities.
    """
    if threshold is None:
        low, high = np.sort(probabilities, axis=1)[:, -2:].T
        return high - low
    p, cut = probabilities[:, positive], float(np.clip(threshold, 1e-6, 1 - 1e-6))
    return np.where(p >= cut, (p - cut) / (1 - cut), (cut - p) / cut)
