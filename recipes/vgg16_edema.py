"""Fine-tune a VGG16 to tell chest radiographs with pulmonary edema from those without.

hf-medtl train vgg16_edema

On several GPUs, from a clone:

accelerate launch recipes/vgg16_edema.py

The last convolution block is trained with the head, with dropout and weight decay against overfitting on a small set.
To train only the head: --strategy feature_extraction.

No score of this recipe has been measured yet.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["vgg16_edema"]

if __name__ == "__main__":
    main(RECIPE)
