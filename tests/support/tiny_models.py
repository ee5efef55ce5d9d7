"""Tiny models with random weights, saved as they would come from the Hub."""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_medtl.models.segmenter import build_segmenter

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


ENCODERS = {  # model types of image encoders -> arguments of a tiny configuration
    "dinov3_vit": VIT | {"intermediate_size": 16, "num_register_tokens": 2},
    "dinov3_convnext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4},
    "siglip_vision_model": VIT | {"intermediate_size": 16},
    "clip_vision_model": VIT | {"intermediate_size": 16},
    "aimv2_vision_model": VIT | {"intermediate_size": 16},
    "mlcd_vision_model": VIT | {"intermediate_size": 16},
    "pixio": VIT,
    "vit_mae": VIT | {"intermediate_size": 16},
    "ijepa": VIT | {"intermediate_size": 16},
    "vit": VIT | {"intermediate_size": 16},
}


def save_encoder(model_type: str, folder: Path, side: int = 16, **more) -> Path:
    """Save a tiny image encoder with random weights and without a head, as it would come from the Hub."""
    torch.manual_seed(0)
    AutoModel.from_config(CONFIG_MAPPING[model_type](**ENCODERS[model_type], **more)).save_pretrained(folder)
    ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def write_licence(folder: Path, licence: str = "apache-2.0") -> None:
    """Write a card that states a licence."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n", encoding="utf-8")


def save_tiny(family: str, folder: Path, licence: str = "apache-2.0") -> Path:
    """Save a tiny checkpoint with random weights, and its own labels if any, as it would come from the Hub."""
    write_licence(folder, licence)
    if family in ENCODERS.keys() - {"vit"}:
        return save_encoder(family, folder, side=64 if family == "dinov3_convnext" else 16)
    from transformers import (
        BitImageProcessor,
        ConvNextConfig,
        DeiTConfig,
        Dinov2Config,
        Dinov2Model,
        SwinConfig,
        TimmWrapperConfig,
        TimmWrapperForImageClassification,
        ViTConfig,
        ViTImageProcessor,
    )

    from hf_medtl.models.cnn import MedicalCnnConfig

    torch.manual_seed(0)
    labels = {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}}
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    mean_std = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    if family.startswith("timm"):
        cfg = {"input_size": [3, 64, 64], "crop_pct": 0.875, "interpolation": "bicubic", "classifier": "fc"}
        cfg |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
        name = family.partition("-")[2] or "resnet"
        more = {"model_args": {"img_size": 64}} if name == "vit" else {}
        config = TimmWrapperConfig(architecture=f"test_{name}", pretrained_cfg=cfg, num_labels=3, **more, **labels)
        TimmWrapperForImageClassification(config).save_pretrained(folder)
        return folder
    if family == "rad-dino":  # microsoft/rad-dino: a body without a head, and a processor that crops the centre
        Dinov2Model(Dinov2Config(mlp_ratio=2, **layers)).save_pretrained(folder)
        sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        BitImageProcessor(**sides, **mean_std).save_pretrained(folder)
        return folder
    config = {
        "vit": ViTConfig(intermediate_size=64, hidden_dropout_prob=0.1, **layers, **labels),
        "deit": DeiTConfig(intermediate_size=64, **layers, **labels),
        "dinov2": Dinov2Config(mlp_ratio=2, **layers, **labels),
        "swin": SwinConfig(
            image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, **labels
        ),
        "convnext": ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=32, **labels),
        "cnn": MedicalCnnConfig(widths=(8, 16), image_size=32, **labels),
    }[family]
    config.architectures = []  # without a list AutoModel fails for families of two classes, such as DeiT
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, **mean_std).save_pretrained(folder)
    return folder


LABELS = ("background", "lung")


TINY = {"decoder_channels": (16, 16, 8, 8, 8)}


def build_tiny(encoder: str = "tu-test_resnet", labels=LABELS, **more):
    """Return a small U-Net with random weights and non-default batch norm statistics."""
    torch.manual_seed(0)
    more = {"encoder": encoder, "encoder_weights": "none", "image_size": 64, "model_args": TINY} | more
    model, processor = build_segmenter("unet", labels, **more)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    return model.eval(), processor


class _Pixels(nn.Module):
    def forward(self, pixels):
        return [pixels]


class _Last(nn.Module):
    def forward(self, features):
        return features[-1]


def build_threshold_segmenter(**more):
    """Return a network that marks pixels darker than mid-grey, and its processor: its right masks are known."""
    model, processor = build_tiny(**more)
    model.encoder, model.decoder, model.segmentation_head = _Pixels(), _Last(), nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        model.segmentation_head.weight.copy_(torch.tensor([1.0, -1.0])[:, None, None, None].expand(2, 3, 1, 1))
        model.segmentation_head.bias.zero_()
    return model, processor


def save_segformer(folder):
    """Save a tiny SegFormer of transformers with its own labels, as it would come from the Hub."""
    sizes = {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1] * 4,
        "num_attention_heads": [1] * 4,
        "decoder_hidden_size": 16,
    }
    torch.manual_seed(0)
    write_licence(folder)
    SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=5)).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def save_foreign_classifier(folder, labels, model_class=ViTForImageClassification):
    """Save a tiny model that no run produced: no results.json, no splits.csv, no threshold."""
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16,
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
