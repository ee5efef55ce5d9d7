"""Fine-tune an EfficientNet-B0 to tell chest radiographs of children with pneumonia from normal ones.

hf-medtl train efficientnet_b0_pneumonia

On several GPUs, from a clone:

accelerate launch recipes/efficientnet_b0_pneumonia.py

No score of this recipe has been measured yet.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["efficientnet_b0_pneumonia"]

if __name__ == "__main__":
    main(RECIPE)
