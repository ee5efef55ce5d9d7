"""Fine-tune an Inception-ResNet-v2 to tell brain MRI slices with a tumour from those without.

hf-medtl train inception_resnet_v2_brain

On several GPUs, from a clone:

accelerate launch recipes/inception_resnet_v2_brain.py

Images are 299 × 299 pixels with mean and standard deviation 0.5, as the weights expect.

No score of this recipe has been measured yet.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["inception_resnet_v2_brain"]

if __name__ == "__main__":
    main(RECIPE)
