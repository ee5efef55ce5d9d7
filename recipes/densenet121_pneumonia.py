"""Fine-tune a DenseNet-121 to tell chest radiographs of children with pneumonia from normal ones.

hf-medtl train densenet121_pneumonia

On several GPUs, from a clone:

accelerate launch recipes/densenet121_pneumonia.py

No score of this recipe has been measured yet.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["densenet121_pneumonia"]

if __name__ == "__main__":
    main(RECIPE)
