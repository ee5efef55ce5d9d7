"""Heatmaps that explain the predictions of a classifier, in the coordinates of the original images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedModel

from hf_medtl.common.extras import require
from hf_medtl.errors import MedtlError
from hf_medtl.explain.attention import rollout_maps
from hf_medtl.explain.geometry import find_geometry, restore
from hf_medtl.explain.layers import Layer, Logits, eval_without_grads, find_layer
from hf_medtl.models.copies import shared_copy
from hf_medtl.models.heads import to_probabilities

Heatmaps = NDArray[np.float32]
LayerChoice = str | Layer | None  # a layer, its name, or None to find one
# Model, pixels (n, C, H, W), classes (n,), a layer or its name or None -> maps (n, H, W) in [0, 1].
Method = Callable[[PreTrainedModel, torch.Tensor, NDArray[np.int64], LayerChoice], Heatmaps]


@dataclass(frozen=True)
class Explanation:
    """Heatmap of one image.

    Attributes:
        map: (H, W) of the image, in [0, 1]; 0 outside of the model's input. 1 is the maximum over the whole input,
            including its margins, so the maximum here can be lower.
        index: the explained class.
        label: its name.
        probability: its probability.
        outside: fraction of the map's sum in the margins of the model's input, outside of the image.
    """

    map: Heatmaps
    index: int
    label: str
    probability: float
    outside: float


def explain(
    model: PreTrainedModel,
    processor: Any,
    images: Sequence[Image.Image],
    classes: Sequence[int | str] | int | str | None = None,
    method: str | Method = "gradcam",
    layer: LayerChoice = None,
    batch_size: int = 16,
) -> list[Explanation]:
    """Compute one heatmap per image. The state of the model is restored afterwards.

    Args:
        model: a classifier.
        processor: its image processor.
        images: of any size, RGB as returned by `read_image`.
        classes: index or label to explain, one for all or one per image; None for the predicted class.
        method: name in METHODS, or a function.
        layer: name of the module whose features are used, or a result of `find_layer`; None finds one.
        batch_size: images per forward pass.

    Raises:
        MedtlError: no such method, class or layer, or one that does not work for the model.
    """
    names = label_names(model)
    targets = class_indices(names, classes, len(images))
    explanations: list[Explanation] = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pixels = to_pixel_values(processor, batch)
        probabilities = predict_probabilities(model, pixels)
        indices = probabilities.argmax(axis=1) if targets is None else targets[start : start + batch_size]
        maps = heatmaps(model, pixels, indices, method, layer)
        for image, values, i, p in zip(batch, maps, map(int, indices), probabilities, strict=True):
            geometry = find_geometry(processor, image)
            left, top, right, bottom = (round(edge) for edge in geometry.inner)
            total = float(values.sum())
            outside = 1 - float(values[top:bottom, left:right].sum()) / total if total else 0.0
            restored = restore(values, geometry, (image.height, image.width))
            explanations.append(Explanation(restored, i, names[i], float(p[i]), max(0.0, outside)))
    return explanations


def heatmaps(
    model: PreTrainedModel,
    pixels: torch.Tensor,
    classes: NDArray[np.int64],
    method: str | Method = "gradcam",
    layer: LayerChoice = None,
) -> Heatmaps:
    """Compute heatmaps (n, H, W) of the model's input, each scaled to [0, 1]; a constant one becomes 0.

    Args:
        model: a classifier.
        pixels: (n, C, H, W), output of the image processor.
        classes: (n,) class to explain.
        method: as for `explain`.
        layer: as for `explain`.

    Raises:
        MedtlError: no such method or layer, or one that does not work for the model.
    """
    if isinstance(method, str) and method not in METHODS:
        raise MedtlError(f"Unknown method {method!r}. Known: {', '.join(METHODS)}.")
    apply = METHODS[method] if isinstance(method, str) else method
    with eval_without_grads(model) as copy:
        if isinstance(layer, Layer):
            layer = layer._replace(module=copy.get_submodule(layer.name))
        maps = apply(copy, pixels.detach().clone(), np.asarray(classes), layer)
    return np.stack([normalise(values) for values in maps])


def normalise(values: NDArray[np.floating]) -> Heatmaps:
    """Scale a map to [0, 1]; NaN and infinity count as 0, and a constant map becomes 0."""
    values = np.nan_to_num(np.asarray(values, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-6 * max(abs(high), abs(low)) or high == low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)


def to_pixel_values(processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """Return the model's input (n, 3, H, W)."""
    return processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]


def predict_probabilities(model: PreTrainedModel, pixels: torch.Tensor) -> NDArray[np.float64]:
    """Return probabilities (n, K) in eval mode, see `to_probabilities`."""
    if any(module.training for module in model.modules()):
        model = shared_copy(model).eval()
    with torch.no_grad():
        return to_probabilities(Logits(model)(pixels), model.config).numpy()


def label_names(model: PreTrainedModel) -> dict[int, str]:
    """Return index -> label."""
    return {int(index): str(name) for index, name in (model.config.id2label or {}).items()}


def class_indices(
    names: dict[int, str], classes: Sequence[int | str] | int | str | None, number: int
) -> NDArray[np.int64] | None:
    """Return class indices (number,) of labels or indices; None for None.

    Raises:
        MedtlError: there is no such class, or not one per image.
    """
    if classes is None:
        return None
    each = [classes] * number if isinstance(classes, int | str) else list(classes)
    index = {name: i for i, name in names.items()} | {i: i for i in names}
    if len(each) != number or any(one not in index for one in each):
        raise MedtlError(
            f"Expected one class for each of the {number} images, of {', '.join(names.values())} or its index; "
            f"found {', '.join(map(str, each[:5]))}."
        )
    return np.array([index[one] for one in each], np.int64)


def _cam(name: str) -> Method:
    """Return a class activation map method of the package grad-cam."""

    def apply(model: PreTrainedModel, pixels: torch.Tensor, classes: NDArray[np.int64], layer: LayerChoice) -> Heatmaps:
        return activation_maps(
            grad_cam_class(name), model, pixels, [itemgetter(int(index)) for index in classes], layer
        )

    return apply


def activation_maps(
    cam: Any, model: PreTrainedModel, pixels: torch.Tensor, targets: Sequence[Callable[..., Any]], layer: LayerChoice
) -> Heatmaps:
    """Compute maps (n, H, W) with a class of the package grad-cam.

    Args:
        cam: the class.
        model: the copy of `eval_without_grads`, which is hooked.
        pixels: (n, C, H, W).
        targets: (n,) functions from the logits of an image to the explained scalar.
        layer: a layer, its name, or None.
    """
    chosen = layer if isinstance(layer, Layer) else find_layer(model, pixels, layer)
    apply = cam(Logits(model), [chosen.module], chosen.reshape)
    try:
        return apply(pixels.to(model.device).requires_grad_(), list(targets))
    finally:
        apply.activations_and_grads.release()  # the copy is used again for the maps of other classes


def grad_cam_class(name: str) -> Any:
    """Return a class of the package grad-cam, with fixes for two of them."""
    library = import_extra("pytorch_grad_cam")
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction

    class EigenCam(library.EigenCAM):  # type: ignore[name-defined]
        """Eigen-CAM with a sign: a principal component has none, so the map might be inverted.

        Source: Chung and Ying 2025, Seg-Eigen-CAM, https://doi.org/10.3390/app15137562.
        """

        def get_cam_image(self, pixels: Any, layer: Any, targets: Any, activations: Any, *_: Any) -> Any:
            return get_2d_projection_with_sign_correction(activations)

    class ScoreCam(library.ScoreCAM):  # type: ignore[name-defined]
        """Score-CAM without progress bars, and without hooks, which would keep the features of every masked image.

        Source: Wang et al. 2020, https://arxiv.org/abs/1910.01279.
        """

        @torch.no_grad()
        def get_cam_weights(self, pixels: Any, layer: Any, targets: Any, activations: Any, grads: Any) -> Any:
            self.activations_and_grads.release()
            masks = torch.from_numpy(activations).to(pixels.device)
            masks = torch.nn.functional.interpolate(masks, pixels.shape[-2:], mode="bilinear", align_corners=True)
            low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
            masks = (masks - low) / (high - low + 1e-8)
            scores = [
                [target(logits) for part in channels[:, None].split(16) for logits in self.model(image * part)]
                for image, channels, target in zip(pixels, masks, targets, strict=True)
            ]
            return torch.stack([torch.stack(each) for each in scores]).softmax(dim=1).cpu().numpy()

    return {
        "gradcam": library.GradCAM,
        "gradcam++": library.GradCAMPlusPlus,
        "eigencam": EigenCam,
        "scorecam": ScoreCam,
    }[name]


def _rollout(model: PreTrainedModel, pixels: torch.Tensor, classes: NDArray[np.int64], layer: LayerChoice) -> Heatmaps:
    """Compute attention rollout, which depends on no class and no layer."""
    size = pixels.shape[-2:]
    maps = torch.from_numpy(rollout_maps(model, pixels))[:, None]
    return torch.nn.functional.interpolate(maps, size, mode="bilinear")[:, 0].numpy()


def _integrated(
    model: PreTrainedModel, pixels: torch.Tensor, classes: NDArray[np.int64], layer: LayerChoice
) -> Heatmaps:
    """Compute integrated gradients from the darkest colour of each image, with absolute values summed over channels.

    The highest 1 % of the values is clipped (Smilkov et al. 2017, https://arxiv.org/abs/1706.03825); otherwise only a
    few pixels would be visible. Source: Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365.
    """
    attribute = import_extra("captum.attr").IntegratedGradients(Logits(model)).attribute
    pixels = pixels.to(model.device)
    darkest = pixels.amin(dim=(2, 3), keepdim=True).expand_as(pixels)
    targets = torch.from_numpy(classes).to(model.device)
    attributions = attribute(pixels, darkest, target=targets, n_steps=32, internal_batch_size=len(pixels))
    values = attributions.abs().sum(dim=1).detach().cpu().numpy()
    return np.minimum(values, np.percentile(values, 99, axis=(1, 2), keepdims=True)).astype(np.float32)


def import_extra(name: str) -> Any:
    """Import a module of the extra `explain`."""
    return require(name, "explain", "A heatmap")


METHODS: dict[str, Method] = {
    **{name: _cam(name) for name in ("gradcam", "gradcam++", "eigencam", "scorecam")},
    "rollout": _rollout,
    "integrated_gradients": _integrated,
}
