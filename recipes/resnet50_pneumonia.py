"""Fine-tune a ResNet-50 to tell chest radiographs of children with pneumonia from normal ones.

hf-medtl train resnet50_pneumonia

On several GPUs, from a clone:

accelerate launch recipes/resnet50_pneumonia.py

On a part of the set (567 images to train on, 210 of the official test split) with ResNet-50 weights of ImageNet-1k,
5 epochs and bf16: ROC AUC 0.944 [0.910, 0.971], 7 minutes on one CPU core; see benchmarks/RESULTS.md.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["resnet50_pneumonia"]

if __name__ == "__main__":
    main(RECIPE)
