"""Train a U-Net to segment the lungs on chest radiographs of two hospitals (Shenzhen and Montgomery).

hf-medtl train unet_lungs

On several GPUs, from a clone:

accelerate launch recipes/unet_lungs.py

The encoder starts from ImageNet weights, from the Hub or --encoder_weights FOLDER. Results are also by hospital.

With EfficientNet-Lite0 weights of ImageNet-1k, on a partial copy of 134 images with masks: Dice 0.956 and 0.958 on
seeds 1 and 2 (27 test images each), mean 0.957 [0.948, 0.964]; Shenzhen 0.949, Montgomery 0.968; from random weights
0.947. Five and a half minutes on two CPU cores; see benchmarks/RESULTS.md.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["unet_lungs"]

if __name__ == "__main__":
    main(RECIPE)
