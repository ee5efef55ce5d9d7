"""Maps of a split: pages to look at, a verdict for each label, and where the maps lie."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.metrics import decide
from hf_medtl.explain import gallery, statistics
from hf_medtl.explain.localization import Region, energy_inside, inside_of
from hf_medtl.explain.maps import Explanation, explain, label_names, predict, to_pixels
from hf_medtl.explain.sanity import verdict
from hf_medtl.models.heads import is_segmenter

SMALL = 0.2  # share of the picture that a region may cover for maps to fail if they are not twice as strong inside
BATCH = 16  # pictures that are in memory at a time
TITLES = {
    "most_certain_right": "Right, and most certain",
    "most_certain_wrong": "Wrong, and most certain",
    "least_certain": "Least certain",
}


def check(model: PreTrainedModel) -> None:
    """Raise MedtlError for a model that `report` is not for."""
    if is_segmenter(model) or model.config.problem_type == "multi_label_classification":
        raise MedtlError(
            f"A report of maps is for classifiers that give a picture one label, found {type(model).__name__}. For "
            "others there are hf_medtl.explain.maps.explain and hf_medtl.explain.segmentation.explain_masks."
        )


def report(
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
) -> dict[str, Any]:
    """Write explanations.json, a page of pictures for each of TITLES, mean_maps.png and centres.png.

    Each map is of the label that is decided, by the threshold in the model's configuration where there is one.

    Args:
        model, processor, method, layer: as for `explain`.
        paths: (n,) picture files.
        labels: (n,) true ones.
        read: file -> RGB picture.
        out: folder; made if it is not there.
        number: of pictures on a page, at most.
        sample: of pictures for the verdict on each label, at most, drawn from those decided to have it.
        most: of pictures for the statistics, at most, drawn from all.
        seed: of all draws.
        region: where maps should be. All maps of the statistics are measured. A small one, such as a lesion, is one
            more check of the verdict; lungs, a quarter of the picture and more, are not.
        groups: (n,) patient or duplicate-group of each picture, for intervals; each its own if not given.

    Returns:
        What is in explanations.json. For each label that is decided somewhere a verdict, see `verdict`; statistics, see
        there; pages: name -> rows of picture, label, decided, probability; with a region energy, see `energy_inside`.

    Raises:
        MedtlError: no pictures, labels that the model does not have, or as for `explain`.
    """
    check(model)
    names = label_names(model)
    index = {name: i for i, name in names.items()}
    if not len(paths) or not set(labels) <= set(index):
        raise MedtlError(
            f"Pictures with the model's labels {', '.join(index)} are expected; found {len(paths)} pictures with "
            f"{', '.join(sorted(set(labels))) or 'none'}."
        )
    out.mkdir(parents=True, exist_ok=True)
    rng, truth = np.random.default_rng(seed), np.array([index[label] for label in labels])
    probabilities = np.concatenate(
        [
            predict(model, to_pixels(processor, [read(path) for path in paths[start : start + BATCH]]))
            for start in tqdm(range(0, len(paths), BATCH), "Predicting", leave=False, disable=None)
        ]
    )
    positive, threshold = (
        index.get(getattr(model.config, "positive_label", "")),
        getattr(model.config, "threshold", None),
    )
    if positive is None or len(names) != 2:
        positive, threshold = len(names) - 1, None
    decided = decide(probabilities, positive, threshold)

    def maps_of(rows: NDArray[np.int64]) -> Iterator[tuple[Image.Image, Explanation]]:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            pictures = [read(paths[i]) for i in part]
            yield from zip(
                pictures, explain(model, processor, pictures, decided[part].tolist(), method, layer), strict=True
            )

    pages = {}
    for name, rows in gallery.choose(truth, decided, certainty(probabilities, positive, threshold), number).items():
        shown, listed = [], []
        for i, (picture, item) in zip(rows, maps_of(rows), strict=True):
            told = f"{item.label} {item.probability:.2f}"
            caption = told if decided[i] == truth[i] else f"{labels[i]}, called {told}"
            shown.append(gallery.Shown(picture, item.map, caption))
            listed.append(
                {
                    "picture": paths[i].name,
                    "label": labels[i],
                    "decided": item.label,
                    "probability": item.probability,
                }
            )
        pages[name] = listed
        if shown:
            gallery.page(shown, out / f"{name}.png", f"{TITLES[name]}: {method}")

    verdicts = {}
    for i in np.unique(decided):
        rows = np.sort(rng.permutation(np.flatnonzero(decided == i))[:sample])
        pictures = [read(paths[row]) for row in rows]
        masks = region and [region.of(paths[row], picture) for row, picture in zip(rows, pictures, strict=True)]
        if masks and np.mean([mask.mean() for mask in masks]) > SMALL:
            masks = None
        verdicts[names[int(i)]] = verdict(model, processor, pictures, int(i), method, layer, masks, seed=seed)

    rows = np.sort(rng.permutation(len(paths))[:most])
    shrunk, inside = [], []
    for i, (picture, item) in zip(rows, maps_of(rows), strict=True):
        shrunk.append(statistics.common_grid([item.map])[0])
        if region:
            inside.append(inside_of(item.map, region.of(paths[i], picture)))
    called = [names[int(i)] for i in decided[rows]]
    statistics.figures(shrunk, called, out)
    found = {
        "method": method,
        "layer": layer,
        "n": len(paths),
        "seed": seed,
        "verdict": verdicts,
        "statistics": statistics.statistics(shrunk, called, seed),
        "pages": pages,
    }
    if region:
        its = [str(i) for i in rows] if groups is None else [groups[i] for i in rows]
        found["energy"] = energy_inside(region, inside, called, its, seed)
    (out / "explanations.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return found


def certainty(probabilities: NDArray[np.float64], positive: int, threshold: float | None) -> NDArray[np.float64]:
    """(n,) from 0 for a decision that might as well be another, to 1: how far the probability is from the threshold, as
    a share of the way to 0 or 1; without one, how far the two highest probabilities are apart.
    """
    if threshold is None:
        low, high = np.sort(probabilities, axis=1)[:, -2:].T
        return high - low
    p, cut = probabilities[:, positive], float(np.clip(threshold, 1e-6, 1 - 1e-6))
    return np.where(p >= cut, (p - cut) / (1 - cut), (cut - p) / cut)
