"""Predictor: load any published image model and apply everything that was saved with it."""

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    BatchFeature,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.system import cores, is_disk_full
from hf_medtl.common.text import first_line, nearest
from hf_medtl.data.augmentation import MIRRORING
from hf_medtl.data.inputs import ImageSource, iter_sources, read_source, source_name
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.evaluation.evaluate import quiet_pipeline
from hf_medtl.evaluation.ood import OOD_FILE, OutOfDistributionScorer
from hf_medtl.evaluation.postprocessing import postprocess
from hf_medtl.explain.geometry import find_geometry, restore
from hf_medtl.explain.layers import Layer, find_layer
from hf_medtl.explain.maps import METHODS, Heatmaps, heatmaps
from hf_medtl.explain.segmentation import CAMS, entropy
from hf_medtl.models.build import load_trained
from hf_medtl.models.copies import captured_inputs
from hf_medtl.models.device import memory_format, select_device
from hf_medtl.models.ensemble import EnsembleForImageClassification, log_mean_exp
from hf_medtl.models.heads import find_head, is_segmenter, is_sigmoid, to_probabilities
from hf_medtl.models.tta import AffineView, monte_carlo_dropout, tta_views
from hf_medtl.models.untrusted import check_model, load_config, load_processor

logger = logging.getLogger("hf_medtl")


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    One that can't be read has an `error` and nothing else; one that can't have a heatmap has both.

    Attributes:
        name: path, or #0, #1, ... by position.
        probabilities: label -> calibrated probability, in output order; empty for masks.
        label: the most probable label, whatever its probability; None for masks. With a saved threshold it can differ
            from the decision, which is what counts.
        decision: label at the saved threshold; for multilabel models, and those with one output, all decided labels,
            separated by |, and "" for none.
        candidates: conformal set of labels; None if none was saved.
        reasons: reasons to abstain from a decision: "uncertain" (not exactly one candidate), "unlike the training
            images" (out-of-distribution); empty if there are none.
        outlier: out-of-distribution score divided by its threshold, above 1 for out-of-distribution images; None if no
            scorer was saved.
        spread: standard deviation of the label's probability over augmented copies or dropout passes; None without.
        map: (H, W) in [0, 1], heatmap in the coordinates of the original image; None if not requested.
        mask: (H, W) class indices at the original size, after the saved postprocessing; None for labels.
        area: class -> fraction of the image's pixels, without the background.
        seconds: time of the model and all later steps for the batch, per image.
        error: why there is no prediction, or no heatmap.
        embedding: (d,) the input of the classification head; None if not requested.
    """

    name: str
    probabilities: dict[str, float] = field(default_factory=dict)
    label: str | None = None
    decision: str | None = None
    candidates: tuple[str, ...] | None = None
    reasons: tuple[str, ...] = ()
    outlier: float | None = None
    spread: float | None = None
    map: Heatmaps | None = None
    mask: NDArray[np.uint8] | None = None
    area: dict[str, float] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)
    error: str = ""
    embedding: NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def abstain(self) -> bool:
        """True if there are `reasons`."""
        return bool(self.reasons)

    def row(self) -> dict[str, Any]:
        """Return a table row: path, label, p_LABEL, area_CLASS, spread if any, decision, abstain, reason, error."""
        return {
            "path": self.name,
            "label": self.label,
            **{f"p_{label}": p for label, p in self.probabilities.items()},
            **{f"area_{name}": fraction for name, fraction in self.area.items()},
            **({} if self.spread is None else {"spread": self.spread}),
            "decision": self.decision,
            "abstain": self.abstain,
            "reason": ", ".join(self.reasons),
            "error": self.error,
        }


class Predictor:
    """Image classifier or segmentation model with its image processor and its saved decision settings.

    Args:
        model: a model whose configuration may have threshold, thresholds, positive_label, conformal, outliers and
            postprocessing; other models return probabilities or masks alone.
        processor: its image processor.
        outliers: scorer of out-of-distribution images.
        revision: commit on the Hub that it was loaded from, or the first digits of the SHA-256 of a folder's weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        outliers: OutOfDistributionScorer | None = None,
        revision: str | None = None,
    ) -> None:
        self.model, self.processor, self.outliers, self.revision = model.eval(), processor, outliers, revision
        self.config = model.config
        self.labels = tuple(name for _, name in sorted((self.config.id2label or {}).items()))
        self.is_segmentation = is_segmenter(model)
        self.wording: dict[str, str] = getattr(self.config, "wording", None) or {}  # label -> sentence
        if not isinstance(self.wording, dict):
            raise MedtlError(f"wording in config.json must be an object of labels and sentences, not {self.wording!r}.")
        self.multilabel = is_sigmoid(self.config)
        if getattr(self.config, "synthetic_data", False):
            logger.warning("A demo model, trained on synthetic images: its answers on real images mean nothing.")
        self._layers: dict[tuple[str, tuple[int, ...]], Layer] = {}
        self._methods: set[str] = set()  # heatmap methods that work for the model
        if self.is_segmentation and len(self.labels) == 1:
            raise MedtlError(
                f"{type(model).__name__} has one class, {self.labels[0]}, and none for the background, so every pixel "
                "would be of it. Use a segmentation model with a class for the background."
            )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
    ) -> "Predictor":
        """Load from a run folder or a Hub id.

        Args:
            name: folder or id.
            revision: branch, tag or commit on the Hub.
            device: "cuda", "cpu", ...; by default an accelerator if available.
            trust_remote_code: run code of the repository. Not needed for our models, whose classes are built in.

        Raises:
            MedtlError: no such model or device, no network, neither a classifier nor a segmentation model, or weights
                that are missing or not finite, or files that ask for what no model needs.
        """
        chosen = select_device(device)  # before anything is downloaded
        hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        try:
            hub["revision"] = check_model(name, **hub)  # of a Hub id a commit, so that all files are of one
            config = load_config(name, **hub)
            segmentation = any(str(x).endswith("ForSemanticSegmentation") for x in config.architectures or ())
            auto: Any = AutoModelForSemanticSegmentation if segmentation else AutoModelForImageClassification
            DecisionRule.from_config(config)  # fails for values that no rule has
            model: Any = load_trained(auto, name, **hub)
            processor = load_processor(name, **hub)
            # If the config announces the file, a failed download must not look like a missing file.
            announced = getattr(config, "outliers", None)
            ood_file = cached_file(name, OOD_FILE, revision=revision) if announced else None
            outliers = OutOfDistributionScorer.load(Path(ood_file).parent) if ood_file else None
            if outliers and outliers.centres.shape[1] != find_head(model).in_features:
                raise ValueError(f"{OOD_FILE} belongs to another model")
        except (OSError, ValueError, KeyError, HFValidationError, SafetensorError, RuntimeError) as error:
            if is_disk_full(error):
                raise MedtlError(
                    f"The disk is full: {name} does not fit into {HF_HUB_CACHE}, and no partial files were kept. Free "
                    "some space, or set HF_HOME to a folder on another disk; then load it again."
                ) from error
            if RunFolder(name).is_marked:
                raise MedtlError(
                    f"{name} is an unfinished run. Finish it with --resume_from_checkpoint auto, or give one of its "
                    "folders checkpoint-STEP."
                ) from error
            raise MedtlError(
                f"{name} can't be loaded as an image classifier or a segmentation model ({first_line(error)})."
                f"{_similar_folder(Path(name))} Use a run folder or the id of a model on the Hub; check the spelling "
                "and the network."
            ) from error
        return cls(model.to(chosen), processor, outliers, loaded_revision(name, revision))

    def predict(
        self,
        images: ImageSource | Iterable[ImageSource],
        batch_size: int = 16,
        explain: str | None = None,
        tta: int = 0,
        mc_dropout: int = 0,
        embed: bool = False,
    ) -> list[Prediction]:
        """Predict images, in order; a folder stands for the images in it.

        With `tta` or `mc_dropout`, probabilities are means over all passes, including the plain one, and `spread` is
        their standard deviation. Thresholds and conformal sets stay those fitted to plain predictions.

        Args:
            images: paths, bytes, Pillow images, or uint8 arrays and tensors (H, W), (H, W, C) or (C, H, W), or one of
                these. Files of more than 8 bits and DICOM are windowed as in training.
            batch_size: images per forward pass; images that the processor gives different sizes go one size at a time.
                With less than 1 every image has an `error`.
            explain: method of a heatmap of the label, such as "gradcam" (see `hf_medtl.explain.maps.METHODS`); for
                masks "uncertainty", the entropy of each pixel's probabilities divided by its maximum.
            tta: test-time augmentation: number of rotated and zoomed copies, also flipped if the model was trained with
                flipped images.
            mc_dropout: number of Monte Carlo passes with dropout.
            embed: also return the input of the classification head for the plain image.

        Raises:
            MedtlError: an unknown method, too many copies, no dropout in the model, or no single head to embed with.
        """
        return list(self.stream(images, batch_size, explain, tta, mc_dropout, embed))

    def stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        batch_size: int = 16,
        explain: str | None = None,
        tta: int = 0,
        mc_dropout: int = 0,
        embed: bool = False,
    ) -> Iterator[Prediction]:
        """Return an iterator over the results of `predict`, with two batches of images at a time in memory."""
        if mc_dropout < 0:
            raise MedtlError(f"mc_dropout must be 0 or more passes, found {mc_dropout}.")
        methods = ("uncertainty",) if self.is_segmentation else tuple(METHODS)
        if explain is not None and explain not in methods:
            raise MedtlError(f"Unknown explain method {explain!r} for this model. Known: {', '.join(methods)}.")
        if explain and not self.is_segmentation:
            self._check_method(explain)
        if embed and (self.is_segmentation or isinstance(self.model, EnsembleForImageClassification)):
            raise MedtlError(
                f"Embeddings are the input of the head of a classifier, but {type(self.model).__name__} has no single "
                "head. Use a classifier, one member of an ensemble, or an image encoder."
            )
        copies = tta_views(tta, mirrored=getattr(self.config, "augmentation", None) in MIRRORING)
        dropping = [monte_carlo_dropout(self.model)] * mc_dropout if mc_dropout else []
        return self._stream(iter_sources(images), batch_size, explain, copies, dropping, embed)

    def _stream(
        self,
        images: Iterator[ImageSource],
        batch_size: int,
        explain: str | None,
        copies: Sequence[AffineView],
        dropping: Sequence[PreTrainedModel],
        embed: bool,
    ) -> Iterator[Prediction]:
        sources = enumerate(images)
        if getattr(self.processor, "tile", None):  # whole images, which may be large
            batch_size = min(batch_size, 1)
        if batch_size < 1:
            error = f"batch_size must be at least 1, found {batch_size}."
            yield from (Prediction(source_name(source), error=error) for source in sources)
            return
        with ThreadPoolExecutor(cores()) as pool:
            waiting = pool.map(read_source, islice(sources, batch_size))
            while batch := list(waiting):
                waiting = pool.map(read_source, islice(sources, batch_size))  # read while the model works
                started, readable = time.monotonic(), [image for _, image, _ in batch if image is not None]
                results = iter(self._predict_batch(readable, explain, copies, dropping, embed))
                seconds = (time.monotonic() - started) / max(1, len(readable))
                for name, image, error in batch:
                    fields = {"error": error} if image is None else {**next(results), "seconds": seconds}
                    if image is not None and fields.get("error"):
                        fields["error"] = f"{name}: {fields['error']}"
                    yield Prediction(name, **fields)

    def _predict_batch(
        self,
        images: Sequence[Image.Image],
        explain: str | None,
        copies: Sequence[AffineView],
        dropping: Sequence[Any],
        embed: bool,
    ) -> list[dict[str, Any]]:
        """Return the fields of `Prediction` for each RGB image; what fails for one size is an error of that size."""
        fields: list[dict[str, Any]] = [{} for _ in images]
        by_size: dict[Any, list[tuple[int, Any]]] = {}
        for i, image in enumerate(images):  # one by one, as pipeline() does: sizes may differ, and any may fail
            try:
                inputs = self.processor(image, return_tensors="pt")
                by_size.setdefault(tuple((key, inputs[key].shape) for key in inputs), []).append((i, inputs))
            except Exception as error:  # of any library that a processor uses
                fields[i] = _failure("the image processor", image, error)
        for group in by_size.values():
            numbers, parts = zip(*group, strict=True)
            same_size = [images[i] for i in numbers]
            inputs = {key: torch.cat([x[key] for x in parts]) if parts[1:] else parts[0][key] for key in parts[0]}
            try:
                results = list(self._predict_size(same_size, inputs, explain, copies, dropping, embed))
            except (ValueError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
                    raise
                results = [_failure("the model", image, error) for image in same_size]
            for i, result in zip(numbers, results, strict=True):
                fields[i] = result
        return fields

    @torch.inference_mode()
    def _predict_size(
        self,
        images: list[Image.Image],
        inputs: dict[str, torch.Tensor],
        explain: str | None,
        copies: Sequence[AffineView],
        dropping: Sequence[Any],
        embed: bool,
    ) -> Iterator[dict[str, Any]]:
        """Yield the fields of `Prediction` for images whose inputs have one size."""
        with self.collect_features(embed) as features:
            passes = list(self._passes(inputs, copies, dropping))
        if self.is_segmentation:
            logits = passes[0] if len(passes) == 1 else log_mean_exp(torch.stack(passes).log_softmax(dim=2))
            crops = inputs["crop_boxes"].tolist() if "crop_boxes" in inputs else [None] * len(images)
            for image_logits, image, crop in zip(logits, images, crops, strict=True):
                yield self._mask(image_logits, image, crop, bool(explain))
            return
        stacked = to_probabilities(torch.stack(passes), self.config)
        probabilities = stacked.mean(dim=0).numpy()
        spreads = stacked.std(dim=0).numpy() if len(passes) > 1 else None
        scores = self.ood_scores(features[:1]) if self.outliers else None  # of the first pass: the plain images
        best = probabilities.argmax(axis=1)
        maps = [*self._heatmaps(images, inputs["pixel_values"], best, explain)] if explain else [{}] * len(images)
        for i, label in enumerate(best):
            score = None if scores is None or np.isnan(scores[i]) else float(scores[i])
            spread = None if spreads is None else float(spreads[i, label])
            embedding = {"embedding": features[0][i].float().cpu().numpy()} if embed else {}
            yield self._labels(probabilities[i], score) | {"spread": spread} | embedding | maps[i]

    @contextmanager
    def collect_features(self, always: bool = False) -> Iterator[list[torch.Tensor]]:
        """Collect the features (B, d) before the head of each batch, for `ood_scores`.

        Only those of this thread: others can use the predictor meanwhile.

        Args:
            always: also without a scorer, where there are none otherwise.
        """
        with captured_inputs(find_head(self.model) if self.outliers or always else None) as features:
            yield features

    def ood_scores(self, features: list[torch.Tensor]) -> NDArray[np.float64]:
        """Return out-of-distribution scores (n,) of collected features, divided by the threshold; above 1 is unusual.

        Raises:
            ValueError: the model was saved without a scorer.
        """
        threshold = self.decision_rule.ood_threshold
        if not self.outliers or threshold is None:
            raise ValueError("this model has no outliers.safetensors")
        values = torch.cat([batch.detach().float().cpu() for batch in features]).numpy()
        return self.outliers.score(values) / threshold

    @property
    def decision_rule(self) -> DecisionRule:
        """Thresholds, conformal sets and postprocessing that the configuration holds."""
        return DecisionRule.from_config(self.config)

    def pipeline(self) -> Any:
        """Return a stock `pipeline()` of the loaded model."""
        task: Any = "image-segmentation" if self.is_segmentation else "image-classification"
        return quiet_pipeline(task, model=self.model, image_processor=self.processor, device=self.model.device)

    def _passes(
        self, inputs: dict[str, torch.Tensor], copies: Sequence[AffineView], dropping: Sequence[Any]
    ) -> Iterator[torch.Tensor]:
        """Yield logits (n, K), or (n, K, h, w) for masks, of the images, of augmented copies, and with dropout."""
        yield self._logits(self.model, inputs)
        for view in copies:  # in float32 also for a half-precision model
            logits = self._logits(self.model, inputs | {"pixel_values": view.apply(inputs["pixel_values"])})
            yield view.undo(logits) if self.is_segmentation else logits
        for model in dropping:
            yield self._logits(model, inputs)

    def _logits(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return logits in float32 for inputs on any device and in any precision."""
        device = self.model.device
        moved = BatchFeature(dict(inputs)).to(device, dtype=getattr(self.model, "dtype", torch.float32))
        if not getattr(self.processor, "tile", None):  # a copy, and images of many tiles may be large
            moved["pixel_values"] = moved["pixel_values"].contiguous(memory_format=memory_format(device))
        return model(**moved).logits.float()

    def _check_method(self, method: str) -> None:
        """Raise MedtlError if the model can't have such heatmaps at all: before the work, not for each image."""
        if method not in self._methods:
            image = Image.new("RGB", (256, 256), (127, 127, 127))
            pixels = self.processor(image, return_tensors="pt")["pixel_values"]
            heatmaps(self.model, pixels, np.zeros(1, np.int64), method)
            self._methods.add(method)

    def _heatmaps(
        self, images: list[Image.Image], pixels: torch.Tensor, classes: NDArray[np.int64], method: str
    ) -> Iterator[dict[str, Any]]:
        """Yield a heatmap of each class, of the size of its image, or the error of an image that can't have one."""
        key = method, tuple(pixels.shape[1:])
        try:
            if method in CAMS and key not in self._layers:  # found once: it takes a forward pass
                self._layers[key] = find_layer(self.model, pixels[:1].clone())
            maps = heatmaps(self.model, pixels, classes, method, self._layers.get(key))
        except MedtlError as error:  # an input of few pixels has no features with positions
            yield from ({"error": f"no heatmap: {error}"} for _ in images)
            return
        for values, image in zip(maps, images, strict=True):
            try:
                yield {"map": restore(values, find_geometry(self.processor, image), (image.height, image.width))}
            except MedtlError as error:
                yield {"error": f"no heatmap: {error}"}

    def _mask(
        self, logits: torch.Tensor, image: Image.Image, crop: list[int] | None, uncertainty: bool
    ) -> dict[str, Any]:
        size = image.height, image.width
        if hasattr(self.processor, "restore_logits"):
            large = self.processor.restore_logits(logits, size, crop)
        else:  # like stock image processors
            large = torch.nn.functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        # Some rows at a time: indices have eight bytes a pixel.
        mask = torch.cat([rows.argmax(dim=0).to(torch.uint8) for rows in large.split(1024, dim=1)]).cpu().numpy()
        mask = postprocess(mask, self.decision_rule.postprocessing or {})
        counts = np.array([np.count_nonzero(mask == index) for index in range(len(self.labels))]) / mask.size
        return {
            "mask": mask,
            "area": dict(zip(self.labels[1:], counts[1:].tolist(), strict=True)),
            "map": entropy(large[None])[0] if uncertainty else None,
        }

    def _labels(self, p: NDArray[np.float64], score: float | None) -> dict[str, Any]:
        rule, labels = self.decision_rule, np.array(self.labels, dtype=object)
        sets, reasons = rule.prediction_sets(p[None]), []
        candidates = None if sets is None else tuple(labels[sets[0]])
        if candidates is not None and len(candidates) != 1:
            reasons.append("uncertain")
        if score is not None and score > 1:
            reasons.append("unlike the training images")
        return {
            "probabilities": dict(zip(self.labels, p.tolist(), strict=True)),
            "label": self.labels[int(p.argmax())],
            "decision": "|".join(labels[rule.decide(p[None])[0]]),
            "candidates": candidates,
            "reasons": tuple(reasons),
            "outlier": score,
        }


def prediction_columns(predictor: Predictor, spread: bool = False) -> list[str]:
    """Return the columns of `Prediction.row` for a model."""
    if predictor.is_segmentation:
        specific = [f"area_{name}" for name in predictor.labels[1:]]
    else:
        specific = [*(f"p_{label}" for label in predictor.labels), *(["spread"] if spread else [])]
    return ["path", "label", *specific, "decision", "abstain", "reason", "error"]


def _failure(part: str, image: Image.Image, error: Exception) -> dict[str, Any]:
    """Return the fields of the prediction for an image that a processor or a model does not take."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return {"error": f"{image.width} × {image.height} pixels can't be predicted: {part} says {reason!r}."}


def _similar_folder(folder: Path) -> str:
    """Return a hint at the folder that may have been meant, for an error message."""
    if folder.exists() or not folder.parent.is_dir():
        return ""
    return nearest(str(folder), (str(path) for path in folder.parent.iterdir() if path.is_dir()))


def loaded_revision(name: str | Path, revision: str | None = None) -> str | None:
    """Return the commit of the files in the Hub's cache, or the first digits of the SHA-256 of a folder's weights."""
    if not Path(name).is_dir():
        return extract_commit_hash(cached_file(name, "config.json", revision=revision), None)
    folder = Path(name)
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]
