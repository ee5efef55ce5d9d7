"""preprocessing.json: specification of what to do before and after an exported model, without transformers."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from hf_medtl.evaluation.decisions import DecisionRule
from hf_medtl.export.onnx import INPUT, OUTPUT
from hf_medtl.models.heads import is_segmenter
from hf_medtl.models.preprocessing import describe_processor
from hf_medtl.models.processor import MedicalImageProcessor
from hf_medtl.models.smp import TILE_OVERLAP
from hf_medtl.publish.sentences import NOTICE

WINDOW = (
    "8-bit images unchanged, rotated upright by EXIF, converted to RGB. Images of more bits, and DICOM, are first "
    "windowed to 8 bits: by a DICOM file's own window if it has one, else so that the 0.5th and 99.5th percentile of "
    "the grey values become 0 and 255. hf_medtl.read_image does this."
)
LABEL_ACTIVATION = "The model returns logits; apply this for probabilities. The temperature is part of the last layer."
MASK_ACTIVATION = (
    "The model returns logits for each pixel. {}esize them to the size of the {} (bilinear, align_corners false), "
    "take the class with the highest logit, {}then apply decision.postprocessing, if any."
)

TILES = (
    "Cut the image into evenly spaced tiles that overlap by this fraction or more, average their logits with weights "
    "that fall linearly to the edge of a tile (blend_tiles in smp.py beside the weights), and go on with the whole."
)


def build_preprocessing_spec(
    model: PreTrainedModel, processor: Any, size: tuple[int, int], logits: Sequence[int], file: str
) -> dict[str, Any]:
    """Describe the preprocessing of images for an exported model and the postprocessing of its logits.

    Args:
        model: Model whose configuration may hold a decision rule: positive_label, threshold or thresholds, conformal,
            postprocessing.
        processor: Its image processor.
        size: Height and width of the model's input, in pixels.
        logits: Shape of the output, including the batch dimension.
        file: Name of the exported model file.

    Returns:
        Content of a JSON file: model, in_words, steps (in order, each with its numbers), input, output, labels (in
        output order), activation, decision, notice.
    """
    config, rule, (height, width) = model.config, DecisionRule.from_config(model.config), size
    keys = ("positive_label", "threshold", "thresholds", "conformal", "postprocessing")
    return {
        "model": file,
        "in_words": describe_processor(processor),
        "steps": _steps(processor, height, width),
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "shape": ["batch", 3, height, width],
            "layout": "NCHW",
            "channel_order": "RGB",
        },
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["batch", *logits[1:]],
        },
        "labels": list(rule.labels),
        "activation": {
            "name": "sigmoid" if rule.multilabel else "softmax",
            "axis": 1,
            "in_words": _mask_activation(processor) if is_segmenter(model) else LABEL_ACTIVATION,
        },
        "decision": {key: getattr(config, key) for key in keys if getattr(config, key, None) is not None},
        "notice": NOTICE,
    }


def _mask_activation(processor: Any) -> str:
    """Describe the way from logits to a mask of the size of the image, which undoes margins and a crop."""
    if not isinstance(processor, MedicalImageProcessor):
        return MASK_ACTIVATION.format("R", "image", "")
    pads, crops = bool(processor.tile) or processor.fit == "pad", processor.return_crop_boxes
    return MASK_ACTIVATION.format(
        "Cut off the margins of the step pad (after resizing smaller logits to the input's size), then r"
        if pads
        else "R",
        "crop" if crops else "image",
        "put it at the position of the crop in a mask of the size of the image that is 0 elsewhere, " if crops else "",
    )


def _steps(processor: Any, height: int, width: int) -> list[dict[str, Any]]:
    """Return the preprocessing steps in order."""
    steps: list[dict[str, Any]] = [{"step": "read", "in_words": WINDOW}]
    is_medical = isinstance(processor, MedicalImageProcessor)
    medical_steps = processor.steps if is_medical else ()
    for name in ("brain_crop", "lung_crop"):
        if name in medical_steps:
            steps.append({"step": name, "margin": processor.crop_margin, "code": "processor.py beside the weights"})
    if "grayscale" in medical_steps:
        steps.append({"step": "grayscale", "in_words": "ITU-R 601 luma in all three channels"})
    timm = getattr(processor, "data_config", None)
    resample = None if timm else processor.resample
    tile = getattr(processor, "tile", None)
    if tile:
        steps.append({"step": "pad", "value": 0, "height": f"{tile} or more", "width": f"{tile} or more"})
    else:
        steps.append(
            {
                "step": "resize",
                "height": height,
                "width": width,
                "fit": processor.fit if is_medical else "squash",
                "resample": timm["interpolation"] if timm else Image.Resampling(resample or 0).name.lower(),
                "antialias": True,
                "by": type(processor).__name__,
            }
        )
    if "blur" in medical_steps:
        steps.append({"step": "blur", "sigma": processor.blur_sigma})
    if "clahe" in medical_steps:
        steps.append({"step": "clahe", "clip": processor.clahe_clip, "grid": processor.clahe_grid})
    if is_medical and processor.fit == "pad" and not tile:
        steps.append({"step": "pad", "value": 0, "height": height, "width": width})
    steps.append({"step": "rescale", "factor": getattr(processor, "rescale_factor", 1 / 255)})
    if getattr(processor, "do_normalize", True):
        mean, std = (timm["mean"], timm["std"]) if timm else (processor.image_mean, processor.image_std)
        steps.append({"step": "normalise", "mean": list(mean), "std": list(std)})
    if tile:
        steps.append({"step": "tile", "height": tile, "width": tile, "overlap": TILE_OVERLAP, "in_words": TILES})
    return steps
