"""Fine-tune a DenseNet-121 to tell COVID-19, lung opacity, viral pneumonia and normal chest radiographs apart.

hf-medtl train densenet121_covid4

On several GPUs, from a clone:

accelerate launch recipes/densenet121_covid4.py

No score of this recipe has been measured yet.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["densenet121_covid4"]

if __name__ == "__main__":
    main(RECIPE)
