"""Fine-tune a Vision Transformer to tell COVID-19, pneumonia and normal chest radiographs apart.

hf-medtl train vit_covid3

On several GPUs, from a clone:

accelerate launch recipes/vit_covid3.py

No score of this recipe has been measured yet.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["vit_covid3"]

if __name__ == "__main__":
    main(RECIPE)
