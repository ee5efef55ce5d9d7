"""Train a small CNN with attention to tell chest radiographs of children with pneumonia from normal ones.

hf-medtl train cnn_pneumonia

On several GPUs, from a clone:

accelerate launch recipes/cnn_pneumonia.py

The network has 472 thousand parameters. For a two-layer baseline: --model_name_or_path cnn_baseline.

No score of this recipe has been measured yet.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["cnn_pneumonia"]

if __name__ == "__main__":
    main(RECIPE)
