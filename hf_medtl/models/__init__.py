"""Model builders. Importing this package registers our classes with the Auto classes of `transformers`."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from hf_medtl.models.cnn import MedicalCnnConfig, MedicalCnnForImageClassification
from hf_medtl.models.encoder_classifier import EncoderConfig, EncoderForImageClassification
from hf_medtl.models.ensemble import EnsembleConfig, EnsembleForImageClassification
from hf_medtl.models.processor import MedicalImageProcessor
from hf_medtl.models.smp import SmpConfig, SmpForSemanticSegmentation
from hf_medtl.models.timm_config import TimmBackboneConfig, TimmWrapperConfig

# The first argument should be a model's configuration class, but this processor serves any model: registered for
# ViTConfig, say, it would be shadowed by ViTImageProcessor. So it is its own key, under both backends, because
# `AutoImageProcessor` looks up one of them.
AutoImageProcessor.register(
    MedicalImageProcessor, image_processor_classes=dict.fromkeys(("torchvision", "pil"), MedicalImageProcessor)
)
AutoConfig.register(MedicalCnnConfig.model_type, MedicalCnnConfig)
AutoModelForImageClassification.register(MedicalCnnConfig, MedicalCnnForImageClassification)
AutoConfig.register(EncoderConfig.model_type, EncoderConfig)
AutoModelForImageClassification.register(EncoderConfig, EncoderForImageClassification)
AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig)
AutoModelForImageClassification.register(EnsembleConfig, EnsembleForImageClassification)
AutoConfig.register(SmpConfig.model_type, SmpConfig)
AutoModelForSemanticSegmentation.register(SmpConfig, SmpForSemanticSegmentation)
for _config in (TimmBackboneConfig, TimmWrapperConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)

# Makes save_pretrained copy the files of these classes beside the weights.
MedicalImageProcessor.register_for_auto_class()
MedicalCnnConfig.register_for_auto_class()
MedicalCnnForImageClassification.register_for_auto_class("AutoModelForImageClassification")
EncoderConfig.register_for_auto_class()
EncoderForImageClassification.register_for_auto_class("AutoModelForImageClassification")
EnsembleConfig.register_for_auto_class()
EnsembleForImageClassification.register_for_auto_class("AutoModelForImageClassification")
SmpConfig.register_for_auto_class()
SmpForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
