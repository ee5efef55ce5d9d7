"""Fine-tune a ResNet-50 to tell brain MRI slices with a tumour from those without.

hf-medtl train resnet50_brain

On several GPUs, from a clone:

accelerate launch recipes/resnet50_brain.py

With ResNet-50 weights of ImageNet-1k and bf16: ROC AUC 0.919, 0.985 and 0.919 on seeds 1, 2 and 3, mean 0.941
[0.886, 0.981]; with --strategy lp_ft 0.985 [0.939, 1.000] on seed 1. With an EfficientNet-Lite0: mean 0.937
[0.875, 0.982]. 51 test images each, 4 minutes a run on one CPU core; see benchmarks/RESULTS.md.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["resnet50_brain"]

if __name__ == "__main__":
    main(RECIPE)
