"""Families of classifiers, and a script that loads them without hf_medtl."""

LABELS = ("healthy", "ill")


FAMILIES = ("vit", "deit", "dinov2", "rad-dino", "swin", "convnext", "timm", "timm-vit", "timm-efficientnet",
            "timm-byobnet", "cnn")  # fmt: skip


LOADING_SCRIPT = """
import json, sys
sys.modules["hf_medtl"] = None
import torch
from transformers import AutoModelForImageClassification

pixels, answers = torch.load(sys.argv[1]), {}
for folder in sys.argv[2:]:
    own = folder.endswith("cnn")
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=own or None).eval()
    size = 64 if "/timm" in folder else 32
    answers[folder] = model(pixel_values=pixels[..., :size, :size]).logits.tolist()
print(json.dumps(answers))
"""
