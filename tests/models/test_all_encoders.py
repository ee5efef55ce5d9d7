"""All classes with an image encoder that the installed libraries have: a classifier, or a refusal with its reason."""

import dataclasses

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PvtConfig, PvtForImageClassification, ViTImageProcessor
from transformers import initialization as init
from transformers.models.auto import modeling_auto

from hf_medtl import MedtlError
from hf_medtl.models.backbones import UNFIT
from hf_medtl.models.build import build_classifier
from hf_medtl.models.encoder_classifier import ENCODERS

LABELS = ("healthy", "ill")
SMALL = {"hidden_size": 32, "embed_dim": 32, "d_model": 32, "num_hidden_layers": 2, "num_layers": 2, "depth": 2,
         "encoder_layers": 1, "decoder_layers": 1, "num_attention_heads": 2, "num_heads": 2, "intermediate_size": 32,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "mlp_dim": 32, "vocab_size": 99,
         "projection_dim": 16, "decoder_hidden_size": 16}  # fmt: skip
IMAGES = {*modeling_auto.MODEL_FOR_IMAGE_MAPPING_NAMES} | {*modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES}
STOCK = {*modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES} - {"timm_wrapper", *UNFIT}
QUICK = {"beit", "clip", "deit", "dinov2", "ijepa", "pvt_v2", "segformer", "siglip", "vit"}  # of those in STOCK
OTHERS = sorted(((IMAGES | {*ENCODERS} | {*UNFIT}) & {*CONFIG_MAPPING.keys()}) - STOCK)


def shrink(config_class, depth=0):
    """Return arguments for a small model of a type, as far as its configuration has the usual names."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    default = config_class()
    values = {name: getattr(default, name, None) for name in fields}
    small = {name: size for name, size in SMALL.items() if type(values.get(name)) is int and values[name] > size}
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig) and depth < 2:
            small[name] = {"model_type": value.model_type} | shrink(type(value), depth + 1)
    return small


def build(model_type, folder):
    config = None
    for small in (True, False):  # some sizes depend on one another
        try:
            config = CONFIG_MAPPING[model_type](**shrink(CONFIG_MAPPING[model_type]) if small else {})
            config.save_pretrained(folder)
            break
        except Exception:  # of any configuration class
            continue
    assert config is not None
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder)
    with torch.device("meta"), init.meta_device_safe_creation_ops():  # shapes without memory
        return build_classifier(str(folder), LABELS, from_scratch=True)[0]


def check(model_type, folder):
    """Return True if a classifier was built; assert that a refusal is one line with a reason."""
    try:
        model = build(model_type, folder)
    except MedtlError as error:
        assert "\n" not in str(error)
        assert len(str(error)) > 60
        return False
    assert model.config.num_labels == 2
    return True


@pytest.mark.parametrize("model_type", OTHERS)
def test_encoders_without_a_stock_class_are_built_or_refused_with_the_reason(model_type, tmp_path):
    assert check(model_type, tmp_path) or model_type not in ENCODERS


@pytest.mark.parametrize("model_type", sorted(QUICK))
def test_types_with_a_stock_class_are_built(model_type, tmp_path):
    assert check(model_type, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(STOCK - QUICK))
def test_types_with_a_large_stock_class_are_built_or_refused(model_type, tmp_path):
    check(model_type, tmp_path)


def test_number_of_outputs_is_that_of_the_labels_where_the_configuration_has_its_own(tmp_path):
    config = PvtConfig(image_size=32, hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, num_labels=5)
    PvtForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model, _ = build_classifier(str(tmp_path), LABELS)
    assert model.eval()(pixel_values=torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)
