"""Fine-tune a Vision Transformer to tell brain MRI slices with a tumour from those without.

hf-medtl train vit_brain

On several GPUs, from a clone:

accelerate launch recipes/vit_brain.py

The default backbone has not been measured yet. With a ViT-S/14 checkpoint, vit_brain_small.yaml and bf16: ROC AUC
0.984, 0.998 and 0.984 on seeds 1, 2 and 3, mean 0.989 [0.970, 0.999] (51 test images each; benchmarks/RESULTS.md),
10 minutes a run on one CPU core.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["vit_brain"]

if __name__ == "__main__":
    main(RECIPE)
