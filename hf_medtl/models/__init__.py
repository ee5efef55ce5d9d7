"""What learns. Importing any part of it makes our classes known to the Auto classes of `transformers`."""

from transformers import AutoImageProcessor

from hf_medtl.models.processor import MedicalImageProcessor

# The first argument should be a model's configuration class, but this processor serves any model: registered for
# ViTConfig, say, it would stand beside ViTImageProcessor and not be found. So it is its own key. Both backends, because
# `AutoImageProcessor` asks for one of them.
AutoImageProcessor.register(
    MedicalImageProcessor, image_processor_classes=dict.fromkeys(("torchvision", "pil"), MedicalImageProcessor)
)
MedicalImageProcessor.register_for_auto_class()  # save_pretrained copies processor.py beside the weights
