"""Maps of what a classifier's answer rests on, in the coordinates of the pictures."""

import importlib
import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedModel

from hf_medtl.errors import MedtlError
from hf_medtl.explain.attention import rollout_maps
from hf_medtl.explain.geometry import find_geometry, restore
from hf_medtl.explain.layers import Layer, Logits, find_layer, frozen

Maps = NDArray[np.float32]
Where = str | Layer | None  # a layer, its name, or none: then it is found
# Model, pixels (n, C, H, W), class of each (n,), a layer or its name or None -> maps (n, H, W) in [0, 1].
Method = Callable[[PreTrainedModel, torch.Tensor, NDArray[np.int64], Where], Maps]


@dataclass(frozen=True)
class Explanation:
    """A map of one picture.

    Attributes:
        map: (H, W) of the picture, in [0, 1]; 0 where the model saw nothing. 1 is the most of what the model saw,
            margins too, so that the highest value here can be less.
        index, label: the class that it is a map of.
        probability: of that class.
        outside: share of the map's sum that lies in the margins of the model's input, where there is no picture.
    """

    map: Maps
    index: int
    label: str
    probability: float
    outside: float


def explain(
    model: PreTrainedModel,
    processor: Any,
    pictures: Sequence[Image.Image],
    classes: Sequence[int | str] | int | str | None = None,
    method: str | Method = "gradcam",
    layer: Where = None,
    batch_size: int = 16,
) -> list[Explanation]:
    """One map a picture. The model is as it was before when this ends.

    Args:
        model: a classifier.
        processor: its image processor.
        pictures: of any size, and RGB as `read_image` gives them.
        classes: index or label to explain, one for all or one a picture; None for the one that is predicted.
        method: name in METHODS, or a function.
        layer: name of the module whose features are used, or what `find_layer` gave; None finds one.
        batch_size: pictures at a time.

    Raises:
        MedtlError: no such method, class or layer, or one that does not suit the model.
    """
    names = label_names(model)
    wanted = class_indices(names, classes, len(pictures))
    found: list[Explanation] = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        pixels = to_pixels(processor, batch)
        probabilities = predict(model, pixels)
        these = probabilities.argmax(axis=1) if wanted is None else wanted[start : start + batch_size]
        maps = heatmaps(model, pixels, these, method, layer)
        for picture, seen, index, chances in zip(batch, maps, these, probabilities, strict=True):
            geometry = find_geometry(processor, picture)
            left, top, right, bottom = (round(edge) for edge in geometry.inner)
            total = float(seen.sum())
            outside = 1 - float(seen[top:bottom, left:right].sum()) / total if total else 0.0
            whole = restore(seen, geometry, (picture.height, picture.width))
            found.append(Explanation(whole, int(index), names[int(index)], float(chances[index]), max(0.0, outside)))
    return found


def heatmaps(
    model: PreTrainedModel,
    pixels: torch.Tensor,
    classes: NDArray[np.int64],
    method: str | Method = "gradcam",
    layer: Where = None,
) -> Maps:
    """Maps (n, H, W) of the model's input, in [0, 1]: each from 0 for its least to 1 for its most, a constant one 0.

    Args:
        model: a classifier.
        pixels: (n, C, H, W), as the image processor makes them.
        classes: (n,) class that each map is of.
        method, layer: as for `explain`.

    Raises:
        MedtlError: no such method or layer, or one that does not suit the model.
    """
    if isinstance(method, str) and method not in METHODS:
        raise MedtlError(f"Unknown method {method!r}. Known: {', '.join(METHODS)}.")
    apply = METHODS[method] if isinstance(method, str) else method
    with frozen(model):
        maps = apply(model, pixels.detach().clone(), np.asarray(classes), layer)
    return np.stack([normalise(values) for values in maps])


def normalise(values: NDArray[np.floating]) -> Maps:
    """A map from 0 for its least to 1 for its most; all 0 where it is constant, or holds what is no number."""
    values = np.nan_to_num(np.asarray(values, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-6 * max(abs(high), abs(low)) or high == low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)


def to_pixels(processor: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """(n, 3, H, W) as the model gets them."""
    return processor([picture.convert("RGB") for picture in pictures], return_tensors="pt")["pixel_values"]


def predict(model: PreTrainedModel, pixels: torch.Tensor) -> NDArray[np.float64]:
    """Probabilities (n, K), by softmax, or by sigmoid where a picture can have several labels."""
    with frozen(model), torch.no_grad():
        logits = Logits(model)(pixels).double()
    several = model.config.problem_type == "multi_label_classification"
    return (logits.sigmoid() if several else logits.softmax(dim=1)).cpu().numpy()


def label_names(model: PreTrainedModel) -> dict[int, str]:
    """Index -> label."""
    return {int(index): str(name) for index, name in (model.config.id2label or {}).items()}


def class_indices(
    names: dict[int, str], classes: Sequence[int | str] | int | str | None, number: int
) -> NDArray[np.int64] | None:
    """(number,) class indices of what the user names; None for None.

    Raises:
        MedtlError: there is no such class, or not one a picture.
    """
    if classes is None:
        return None
    each = [classes] * number if isinstance(classes, int | str) else list(classes)
    index = {name: i for i, name in names.items()} | {i: i for i in names}
    if len(each) != number or any(one not in index for one in each):
        raise MedtlError(
            f"One class for each of the {number} pictures is expected, of {', '.join(names.values())} or its number; "
            f"found {', '.join(map(str, each[:5]))}."
        )
    return np.array([index[one] for one in each], np.int64)


def _cam(name: str) -> Method:
    """A class activation map of the package grad-cam."""

    def apply(model: PreTrainedModel, pixels: torch.Tensor, classes: NDArray[np.int64], layer: Where) -> Maps:
        return activation_maps(cam_class(name), model, pixels, [_Target(int(index)) for index in classes], layer)

    return apply


def activation_maps(
    cam: Any, model: PreTrainedModel, pixels: torch.Tensor, targets: Sequence[Callable[..., Any]], layer: Where
) -> Maps:
    """Maps (n, H, W) by a class of the package grad-cam.

    Args:
        cam: the class.
        model: frozen, see `frozen`.
        pixels: (n, C, H, W).
        targets: (n,) functions from the logits of a picture to what is explained.
        layer: name, or None.
    """
    chosen = layer if isinstance(layer, Layer) else find_layer(model, pixels, layer)
    apply = cam(Logits(model), [chosen.module], chosen.reshape)
    try:
        return apply(pixels.to(model.device).requires_grad_(), list(targets))
    finally:
        apply.activations_and_grads.release()


class _Target:
    """A logit."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[self.index]


def cam_class(name: str) -> Any:
    """Class of the package grad-cam; two of them are mended."""
    library = library_of("pytorch_grad_cam")
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction

    class EigenCam(library.EigenCAM):  # type: ignore[name-defined]
        """With a sign: a principal component has none, so that the map might be its negative.

        Source: Chung and Ying 2025, Seg-Eigen-CAM, https://doi.org/10.3390/app15137562.
        """

        def get_cam_image(self, pixels: Any, layer: Any, targets: Any, activations: Any, *_: Any) -> Any:
            return get_2d_projection_with_sign_correction(activations)

    class ScoreCam(library.ScoreCAM):  # type: ignore[name-defined]
        """Without bars, and without the hooks, which would keep the features of every masked picture."""

        def get_cam_weights(self, *args: Any) -> Any:
            self.activations_and_grads.release()
            with redirect_stderr(io.StringIO()):
                return super().get_cam_weights(*args)

    known = {"gradcam": library.GradCAM, "gradcam++": library.GradCAMPlusPlus}
    return {**known, "eigencam": EigenCam, "scorecam": ScoreCam}[name]


def _rollout(model: PreTrainedModel, pixels: torch.Tensor, classes: NDArray[np.int64], layer: Where) -> Maps:
    """Attention rollout, which knows no class and no layer."""
    size = pixels.shape[-2:]
    maps = torch.from_numpy(rollout_maps(model, pixels))[:, None]
    return torch.nn.functional.interpolate(maps, size, mode="bilinear")[:, 0].numpy()


def _integrated(model: PreTrainedModel, pixels: torch.Tensor, classes: NDArray[np.int64], layer: Where) -> Maps:
    """Integrated gradients from the darkest colour of each picture, absolute values added over channels.

    The highest hundredth of the values is cut, as Smilkov et al. 2017 do, https://arxiv.org/abs/1706.03825, else few
    pixels would be all that is seen. Source: Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365.
    """
    attribute = library_of("captum.attr").IntegratedGradients(Logits(model)).attribute
    pixels = pixels.to(model.device)
    darkest = pixels.amin(dim=(2, 3), keepdim=True).expand_as(pixels)
    targets = torch.from_numpy(classes).to(model.device)
    found = attribute(pixels, darkest, target=targets, n_steps=32, internal_batch_size=len(pixels))
    values = found.abs().sum(dim=1).detach().cpu().numpy()
    return np.minimum(values, np.percentile(values, 99, axis=(1, 2), keepdims=True)).astype(np.float32)


def library_of(name: str) -> Any:
    """A module of the extra `explain`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MedtlError(f"Maps need {name.split('.')[0]}: pip install 'hf_medtl[explain]'.") from error


METHODS: dict[str, Method] = {
    **{name: _cam(name) for name in ("gradcam", "gradcam++", "eigencam", "scorecam")},
    "rollout": _rollout,
    "integrated_gradients": _integrated,
}
