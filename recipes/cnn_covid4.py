"""Train a small CNN with attention to classify COVID-19, lung opacity, viral pneumonia and normal chest radiographs.

hf-medtl train cnn_covid4

On several GPUs, from a clone:

accelerate launch recipes/cnn_covid4.py

The network has 472 thousand parameters.

On a part of the set (three classes, 296 images to train on, 92 to test): ROC AUC 0.969 [0.939, 0.991]; the classes
come from different hospitals, so this is optimistic. 30 minutes on one shared CPU core; see benchmarks/RESULTS.md.
"""

from hf_medtl import main
from hf_medtl.training.presets import PRESETS

RECIPE = PRESETS["cnn_covid4"]

if __name__ == "__main__":
    main(RECIPE)
