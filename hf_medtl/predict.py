"""Predictor: load any published image model and apply everything that was saved with it."""

import hashlib
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
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    pipeline,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file, extract_commit_hash

from hf_medtl.common.system import cores, no_room
from hf_medtl.data.augmentation import MIRRORING
from hf_medtl.data.inputs import Source, each_source, read_source
from hf_medtl.errors import MedtlError
from hf_medtl.evaluation.decisions import conformal_sets
from hf_medtl.evaluation.metrics import decide
from hf_medtl.evaluation.ood import FILE as OUTLIERS
from hf_medtl.evaluation.ood import Outliers
from hf_medtl.evaluation.postprocessing import postprocess
from hf_medtl.explain.geometry import find_geometry, restore
from hf_medtl.explain.layers import Layer, find_layer
from hf_medtl.explain.maps import METHODS, Maps, heatmaps
from hf_medtl.explain.segmentation import CAMS, entropy
from hf_medtl.models.ensemble import mean_of_logs
from hf_medtl.models.heads import find_head, is_segmenter
from hf_medtl.models.tta import View, dropout_on, views


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture. A picture that can't be read has an `error` and nothing else.

    Attributes:
        name: its path, or #0, #1, ... by its place.
        probabilities: label -> calibrated probability, in output order; empty for masks.
        label: the most probable; None for masks.
        decision: label at the saved threshold; with several labels a picture those decided, with | between them.
        candidates: conformal set of labels; None where none was saved.
        reasons: why no decision should be taken from this: "uncertain" (not one candidate), "unlike the training
            pictures"; empty where it may.
        outlier: score by the threshold, above 1 unlike the training pictures; None where none was saved.
        spread: standard deviation of the label's probability over changed copies or passes with dropout; None without.
        map: (H, W) in [0, 1], what the answer rests on, in the picture's own coordinates; None where none was asked.
        mask: (H, W) class indices at the picture's own size, after the saved postprocessing; None for labels.
        area: class -> share of the picture's pixels, without the background.
        seconds: that the model and all after it took for this picture's batch, by picture.
        error: why there is no answer.
    """

    name: str
    probabilities: dict[str, float] = field(default_factory=dict)
    label: str | None = None
    decision: str | None = None
    candidates: tuple[str, ...] | None = None
    reasons: tuple[str, ...] = ()
    outlier: float | None = None
    spread: float | None = None
    map: Maps | None = None
    mask: NDArray[np.uint8] | None = None
    area: dict[str, float] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)
    error: str = ""

    @property
    def abstain(self) -> bool:
        """Whether there are `reasons`."""
        return bool(self.reasons)

    def row(self) -> dict[str, Any]:
        """Flat, for tables: path, label, p_LABEL, area_CLASS, perhaps spread, decision, abstain, reason, error."""
        return {
            "path": self.name,
            "label": self.label,
            **{f"p_{label}": p for label, p in self.probabilities.items()},
            **{f"area_{name}": share for name, share in self.area.items()},
            **({} if self.spread is None else {"spread": self.spread}),
            "decision": self.decision,
            "abstain": self.abstain,
            "reason": ", ".join(self.reasons),
            "error": self.error,
        }


class Predictor:
    """An image classifier or segmentation model with its image processor and all that its folder says of decisions.

    Args:
        model: with a configuration that may have threshold, thresholds, positive_label, conformal, outliers and
            postprocessing; any other model has none, and gives probabilities or masks alone.
        processor: its image processor.
        outliers: what tells pictures unlike those of training.
        revision: commit on the Hub that it was loaded from, or the start of the SHA-256 of a folder's weights.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any, outliers: Outliers | None = None, revision: str | None = None
    ) -> None:
        self.model, self.processor, self.outliers, self.revision = model.eval(), processor, outliers, revision
        self.config = model.config
        self.labels = tuple(name for _, name in sorted((self.config.id2label or {}).items()))
        self.of_masks = is_segmenter(model)
        self.wording: dict[str, str] = dict(getattr(self.config, "wording", None) or {})  # label -> sentence for people
        self.several = self.config.problem_type == "multi_label_classification"
        self._layers: dict[tuple[str, tuple[int, ...]], Layer] = {}

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
    ) -> "Predictor":
        """From a run folder or a Hub id.

        Args:
            name: folder or id.
            revision: branch, tag or commit on the Hub.
            device: "cuda", "cpu", ...; an accelerator where there is one, if not given.
            trust_remote_code: run code of the repository. Ours needs none: what `hf_medtl` brings itself is used.

        Raises:
            MedtlError: no such model, no network, or neither a classifier nor a segmentation model.
        """
        hub = {"revision": revision, "trust_remote_code": trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(name, **hub)
            masks = any(kind.endswith("ForSemanticSegmentation") for kind in config.architectures or ())
            auto: Any = AutoModelForSemanticSegmentation if masks else AutoModelForImageClassification
            model, loading = auto.from_pretrained(
                name, **hub, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
            processor = AutoImageProcessor.from_pretrained(name, **hub)
            promised = getattr(config, "outliers", None)  # then a failing download must not pass for a file that is not
            found = cached_file(name, OUTLIERS, revision=revision) if promised else None
            outliers = Outliers.load(Path(found).parent) if found else None
        except (OSError, ValueError, KeyError, HFValidationError, SafetensorError, RuntimeError) as error:
            if no_room(error):
                raise MedtlError(
                    f"There was no room for {name} in {HF_HUB_CACHE}, and nothing half is kept. Free some, or set "
                    "HF_HOME to a folder on another disk; then load it again."
                ) from error
            raise MedtlError(
                f"{name} can't be loaded as an image classifier or a segmentation model ({str(error).splitlines()[0]})."
                " Give a run folder or the id of a model on the Hub; check the spelling and the network."
            ) from error
        if absent := sorted(loading["missing_keys"]):
            raise MedtlError(
                f"{name} has no weights for {len(absent)} tensors of its model, such as {absent[0]}: what it says "
                "would be drawn at random. Fine-tune it first, or give a model that was."
            )
        revision = _digest(Path(name)) if Path(name).is_dir() else _commit(str(name), revision)
        return cls(model.to(device or _device()), processor, outliers, revision)

    def predict(
        self,
        images: Source | Iterable[Source],
        batch_size: int = 16,
        explain: str | None = None,
        tta: int = 0,
        mc_dropout: int = 0,
    ) -> list[Prediction]:
        """Answers for pictures, in their order; a folder stands for the pictures in it.

        With `tta` or `mc_dropout` probabilities are means over all passes, the plain one included, and `spread` says
        how far these differ. Threshold and sets stay those that were fitted to plain answers.

        Args:
            images: paths, bytes, Pillow pictures or uint8 arrays (H, W[, 3]), or one of these. Deep pictures and DICOM
                are windowed as in training.
            batch_size: pictures at a time.
            explain: method of a `map` of the label, such as "gradcam" (see `hf_medtl.explain.maps.METHODS`); for masks
                "uncertainty", the entropy of each pixel's probabilities by the highest there can be.
            tta: test-time augmentation, so many changed copies: turned, zoomed, and mirrored where the model was
                trained with mirrored pictures.
            mc_dropout: so many passes with dropout switched on.

        Raises:
            MedtlError: no such method or so many copies; no dropout in the model.
        """
        return list(self.stream(images, batch_size, explain, tta, mc_dropout))

    def stream(
        self,
        images: Source | Iterable[Source],
        batch_size: int = 16,
        explain: str | None = None,
        tta: int = 0,
        mc_dropout: int = 0,
    ) -> Iterator[Prediction]:
        """`predict` for any number of pictures: two batches at a time are in memory."""
        known = ("uncertainty",) if self.of_masks else tuple(METHODS)
        if explain is not None and explain not in known:
            raise MedtlError(f"This model's answers are explained by {', '.join(known)}; found {explain!r}.")
        copies = views(tta, mirrored=getattr(self.config, "augmentation", None) in MIRRORING)
        sources = enumerate(each_source(images))
        with ThreadPoolExecutor(cores()) as pool:
            waiting = pool.map(read_source, islice(sources, batch_size))
            while batch := list(waiting):
                waiting = pool.map(read_source, islice(sources, batch_size))  # read while the model works
                began, pictures = time.monotonic(), [picture for _, picture, _ in batch if picture is not None]
                answers = list(self._answer(pictures, explain, copies, mc_dropout)) if pictures else []
                seconds = (time.monotonic() - began) / max(1, len(pictures))
                following = iter(answers)
                for name, picture, error in batch:
                    yield (
                        Prediction(name, error=error)
                        if picture is None
                        else Prediction(name, **next(following), seconds=seconds)
                    )

    @torch.inference_mode()
    def _answer(
        self, pictures: list[Image.Image], explain: str | None, copies: Sequence[View], mc_dropout: int
    ) -> Iterator[dict[str, Any]]:
        """The fields of `Prediction` for each of some RGB pictures."""
        with self.watching() as seen:
            inputs = self.processor(pictures, return_tensors="pt").to(self.model.device)
            passes = list(self._passes(inputs, copies, mc_dropout))
        if self.of_masks:
            logits = passes[0] if len(passes) == 1 else mean_of_logs(torch.stack(passes).log_softmax(dim=2))
            for one, picture in zip(logits, pictures, strict=True):
                yield self._mask(one, picture, bool(explain))
            return
        each = torch.stack(passes).double()
        each = each.sigmoid() if self.several else each.softmax(dim=2)
        chances = each.mean(dim=0).cpu().numpy()
        spreads = each.std(dim=0).cpu().numpy() if len(passes) > 1 else None
        scores = np.full(len(pictures), np.nan)
        if self.outliers:
            scores = self.outlierness(seen[:1])  # of the pictures themselves
        best = chances.argmax(axis=1)
        maps = self._maps(pictures, inputs["pixel_values"], best, explain) if explain else [None] * len(pictures)
        for i, label in enumerate(best):
            answer = self._labels(chances[i], None if np.isnan(scores[i]) else float(scores[i]))
            yield answer | {"spread": None if spreads is None else float(spreads[i, label]), "map": maps[i]}

    @contextmanager
    def watching(self) -> Iterator[list[torch.Tensor]]:
        """Features (B, d) before the head of each batch meanwhile, for `outlierness`; none without outliers."""
        seen: list[torch.Tensor] = []
        hook = (
            find_head(self.model).register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(1)))
            if self.outliers
            else None
        )
        try:
            yield seen
        finally:
            if hook:
                hook.remove()

    def outlierness(self, features: list[torch.Tensor]) -> NDArray[np.float64]:
        """(n,) scores by the threshold of what `watching` gave; above 1 unlike the training pictures.

        Raises:
            ValueError: nothing was saved to tell them by.
        """
        if not self.outliers:
            raise ValueError("this model has no outliers.safetensors")
        values = torch.cat([batch.detach().float().cpu() for batch in features]).numpy()
        return self.outliers.score(values) / self.config.outliers["threshold"]

    def pipeline(self) -> Any:
        """Stock `pipeline()` of the model, as it was loaded here."""
        task: Any = "image-segmentation" if self.of_masks else "image-classification"
        level = logging.get_verbosity()
        logging.set_verbosity(logging.CRITICAL)  # else it says that a class of ours is not supported, which then works
        try:
            return pipeline(task, model=self.model, image_processor=self.processor, device=self.model.device)
        finally:
            logging.set_verbosity(level)

    def _passes(self, inputs: Any, copies: Sequence[View], mc_dropout: int) -> Iterator[torch.Tensor]:
        """Logits (n, K), or (n, K, h, w) of masks: of the pictures, of their copies, and with dropout."""
        yield self.model(**inputs).logits.float()
        for view in copies:
            logits = self.model(**{**inputs, "pixel_values": view.apply(inputs["pixel_values"])}).logits.float()
            yield view.undo(logits) if self.of_masks else logits
        if mc_dropout:
            with dropout_on(self.model):
                for _ in range(mc_dropout):
                    yield self.model(**inputs).logits.float()

    def _maps(
        self, pictures: list[Image.Image], pixels: torch.Tensor, classes: NDArray[np.int64], method: str
    ) -> list[Maps]:
        """Maps of the classes, each of its picture's size."""
        key = method, tuple(pixels.shape[1:])
        if method in CAMS and key not in self._layers:  # looked for once: it takes a pass through the model
            self._layers[key] = find_layer(self.model, pixels[:1].clone())
        found = heatmaps(self.model, pixels, classes, method, self._layers.get(key))
        return [
            restore(values, find_geometry(self.processor, picture), (picture.height, picture.width))
            for values, picture in zip(found, pictures, strict=True)
        ]

    def _mask(self, logits: torch.Tensor, picture: Image.Image, uncertainty: bool) -> dict[str, Any]:
        # As image processors of segmentation models do it.
        size = picture.height, picture.width
        large = torch.nn.functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        mask = large.argmax(dim=0).to(torch.uint8).cpu().numpy()
        mask = postprocess(mask, getattr(self.config, "postprocessing", None) or {})
        counts = np.bincount(mask.ravel(), minlength=len(self.labels)) / mask.size
        return {
            "mask": mask,
            "area": dict(zip(self.labels[1:], counts[1:].tolist(), strict=True)),
            "map": entropy(large[None])[0] if uncertainty else None,
        }

    def _labels(self, p: NDArray[np.float64], score: float | None) -> dict[str, Any]:
        config, best = self.config, self.labels[int(p.argmax())]
        decision, candidates, reasons = best, None, []
        positive, threshold = getattr(config, "positive_label", None), getattr(config, "threshold", None)
        if self.several:
            cuts = getattr(config, "thresholds", None) or {}
            decided = [label for label, chance in zip(self.labels, p, strict=True) if chance >= cuts.get(label, 0.5)]
            decision = "|".join(decided)
        elif positive is not None and threshold is not None:
            decision = self.labels[int(decide(p[None], self.labels.index(positive), threshold)[0])]
        if conformal := getattr(config, "conformal", None):
            lowest = np.array([conformal["lowest"][label] for label in self.labels])
            inside = conformal_sets(p[None], lowest)[0]
            candidates = tuple(label for label, is_in in zip(self.labels, inside, strict=True) if is_in)
            reasons += ["uncertain"] if len(candidates) != 1 else []
        if score is not None and score > 1:
            reasons.append("unlike the training pictures")
        return {
            "probabilities": dict(zip(self.labels, p.tolist(), strict=True)),
            "label": best,
            "decision": decision,
            "candidates": candidates,
            "reasons": tuple(reasons),
            "outlier": score,
        }


def columns(predictor: Predictor, spread: bool = False) -> list[str]:
    """Those of `Prediction.row` for a model's pictures."""
    if predictor.of_masks:
        some = [f"area_{name}" for name in predictor.labels[1:]]
    else:
        some = [*(f"p_{label}" for label in predictor.labels), *(["spread"] if spread else [])]
    return ["path", "label", *some, "decision", "abstain", "reason", "error"]


def _commit(name: str, revision: str | None) -> str | None:
    """The commit in the Hub's cache that the files came from."""
    found = cached_file(name, "config.json", revision=revision)
    return extract_commit_hash(found, None)


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with path.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()[:12]


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
