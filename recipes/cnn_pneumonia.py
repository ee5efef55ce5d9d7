"""Train a small CNN with attention to tell chest radiographs of children with pneumonia from normal ones.

accelerate launch recipes/cnn_pneumonia.py

The network has 472 thousand parameters. For a two-layer baseline: --model_name_or_path cnn_baseline.

No score of this recipe has been measured yet.
"""

from pathlib import Path

from hf_medtl import main

RECIPE = {
    "dataset": "chest-xray-pneumonia",
    "model_name_or_path": "cnn",
    "augmentation": "chest",
    "head_dropout": 0.5,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "num_train_epochs": 40,
    "early_stopping_patience": 8,
    "per_device_train_batch_size": 32,
    "output_dir": "runs/cnn_pneumonia",
    "model_card": str(Path(__file__).parents[1] / "model_cards" / "pneumonia.md"),
}

if __name__ == "__main__":
    main(RECIPE)
