"""Train a small CNN with attention (472 thousand parameters) to tell brain MRI slices with a tumour from those without.

hf-medtl train cnn_brain

On several GPUs, from a clone:

accelerate launch recipes/cnn_brain.py

For a two-layer baseline: --model_name_or_path cnn_baseline.

ROC AUC 0.935 [0.844, 0.990] on the 51 test images of seed 1, 13 minutes on one shared CPU core; see
benchmarks/RESULTS.md.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["cnn_brain"]

if __name__ == "__main__":
    main(RECIPE)
