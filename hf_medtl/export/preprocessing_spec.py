"""preprocessing.json: all that somebody needs to know who runs an exported model without transformers."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from hf_medtl.export.onnx import INPUT, OUTPUT
from hf_medtl.models.heads import is_segmenter
from hf_medtl.models.preprocessing import describe_processor
from hf_medtl.models.processor import MedicalImageProcessor
from hf_medtl.publish.sentences import NOTICE

WINDOW = (
    "8-bit pictures as they are, upright by their EXIF, converted to RGB. Those of more bits, and DICOM, are first "
    "windowed to 8 bits: by the file's own window where DICOM has one, else so that the 0.5th and 99.5th percentile of "
    "the grey values become 0 and 255. hf_medtl.read_image does it."
)
OF_LABELS = "The model gives logits; apply this for probabilities. The temperature is part of the last layer."
OF_MASKS = (
    "The model gives logits of each pixel. Resize them to the picture's size (bilinear, align_corners false), then "
    "take the class of the highest, and then decision.postprocessing, if any."
)


def contract(
    model: PreTrainedModel, processor: Any, size: tuple[int, int], logits: Sequence[int], file: str
) -> dict[str, Any]:
    """What becomes of a picture before an exported model, and of its logits after it.

    Args:
        model: whose configuration may say of decisions: positive_label, threshold or thresholds, conformal,
            postprocessing.
        processor: its image processor.
        size: height and width of the model's pictures, in pixels.
        logits: shape of what it answers.
        file: name of the exported model.

    Returns:
        For JSON: model, in_words, steps (in order, each with its numbers), input, output, labels (in output order),
        activation, decision, notice.
    """
    config, masks, (height, width) = model.config, is_segmenter(model), size
    several = config.problem_type == "multi_label_classification"
    labels = [name for _, name in sorted((config.id2label or {}).items())]
    keys = ("positive_label", "threshold", "thresholds", "conformal", "postprocessing")
    return {
        "model": file,
        "in_words": describe_processor(processor),
        "steps": steps(processor, height, width),
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
        "labels": labels,
        "activation": {
            "name": "sigmoid" if several else "softmax",
            "axis": 1,
            "in_words": OF_MASKS if masks else OF_LABELS,
        },
        "decision": {key: getattr(config, key) for key in keys if getattr(config, key, None) is not None},
        "notice": NOTICE,
    }


def steps(processor: Any, height: int, width: int) -> list[dict[str, Any]]:
    """What happens to a picture, in order."""
    found: list[dict[str, Any]] = [{"step": "read", "in_words": WINDOW}]
    own = isinstance(processor, MedicalImageProcessor)
    wanted = processor.steps if own else ()
    for name in ("brain_crop", "lung_crop"):
        if name in wanted:
            found.append({"step": name, "margin": processor.crop_margin, "code": "processor.py beside the weights"})
    if "grayscale" in wanted:
        found.append({"step": "grayscale", "in_words": "ITU-R 601 luma in all three channels"})
    timm = getattr(processor, "data_config", None)
    number = None if timm else processor.resample
    found.append(
        {
            "step": "resize",
            "height": height,
            "width": width,
            "fit": processor.fit if own else "squash",
            "resample": timm["interpolation"] if timm else Image.Resampling(number or 0).name.lower(),
            "antialias": True,
            "by": type(processor).__name__,
        }
    )
    if "blur" in wanted:
        found.append({"step": "blur", "sigma": processor.blur_sigma})
    if "clahe" in wanted:
        found.append({"step": "clahe", "clip": processor.clahe_clip, "grid": processor.clahe_grid})
    if own and processor.fit == "pad":
        found.append({"step": "pad", "value": 0, "height": height, "width": width})
    found.append({"step": "rescale", "factor": getattr(processor, "rescale_factor", 1 / 255)})
    if getattr(processor, "do_normalize", True):
        mean, std = (timm["mean"], timm["std"]) if timm else (processor.image_mean, processor.image_std)
        found.append({"step": "normalise", "mean": list(mean), "std": list(std)})
    return found
