"""Fine-tune an EfficientNet-Lite0 to tell brain MRI slices with a tumour from those without.

hf-medtl train efficientnet_lite0_brain

On several GPUs, from a clone:

accelerate launch recipes/efficientnet_lite0_brain.py

Five folds of the 253 slices, seed 1, with weights of ImageNet-1k: ROC AUC 0.958 [0.916, 0.980], accuracy 0.913
[0.863, 0.946], every slice tested by a model that had not seen it; 5 minutes a fold on one CPU core. See
benchmarks/RESULTS.md.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["efficientnet_lite0_brain"]

if __name__ == "__main__":
    main(RECIPE)
