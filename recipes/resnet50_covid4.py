"""Fine-tune a ResNet-50 to tell COVID-19, lung opacity, viral pneumonia and normal chest radiographs apart.

hf-medtl train resnet50_covid4

On several GPUs, from a clone:

accelerate launch recipes/resnet50_covid4.py

No score of this recipe has been measured yet.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["resnet50_covid4"]

if __name__ == "__main__":
    main(RECIPE)
