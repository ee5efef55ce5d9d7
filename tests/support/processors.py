"""Processors saved with models, and a script that loads them without hf_medtl."""

import torch

from hf_medtl import read_image
from hf_medtl.models.build import build_classifier
from hf_medtl.models.heads import find_head
from hf_medtl.models.preprocessing import normalisation, to_uint8

LABELS = ("healthy", "ill")


LOADING_SCRIPT = """
import json, sys
sys.modules["hf_medtl"] = None  # as if it were not installed
from transformers import AutoImageProcessor, pipeline

answers = []
for folder in sys.argv[2:]:
    try:
        AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error)
    else:
        raise AssertionError("a stock processor was loaded silently instead of ours")
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    classify = pipeline("image-classification", folder, trust_remote_code=True, device="cpu")
    assert type(processor).__name__ == type(classify.image_processor).__name__ == "MedicalImageProcessor"
    answers.append({row["label"]: row["score"] for row in classify(sys.argv[1], top_k=None, function_to_apply="none")})
print(json.dumps(answers))
"""


def save_model_and_processor(model, processor, folder):
    """Save model and processor as a run does."""
    model.save_pretrained(folder)
    if not hasattr(processor, "data_config"):
        processor.save_pretrained(folder)
    return folder


def make_model_and_processor(checkpoint, **kwargs):
    """Return a model whose random head gives images different logits, and its processor."""
    torch.manual_seed(1)
    model, processor = build_classifier(str(checkpoint), LABELS, **kwargs)
    torch.nn.init.normal_(find_head(model).weight)
    return model.eval(), processor


def train_pixels(processor, images):
    """Return the inputs that the Trainer would compute for prepared images."""
    mean, std = normalisation(processor)
    return (torch.from_numpy(to_uint8(processor, images)).permute(0, 3, 1, 2).float() - mean) / std


def train_logits(model, processor, path):
    """Return the logits that the Trainer would compute for an image file."""
    with torch.no_grad():
        return model(pixel_values=train_pixels(processor, [read_image(path)])).logits[0].tolist()
