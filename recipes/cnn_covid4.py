"""Train a small CNN with attention to classify COVID-19, lung opacity, viral pneumonia and normal chest radiographs.

accelerate launch recipes/cnn_covid4.py

The network has 472 thousand parameters.

On a part of the set (three classes, 296 images to train on, 92 to test): ROC AUC 0.969 [0.939, 0.991]; the classes
come from different hospitals, so this is optimistic. 30 minutes on one shared CPU core; see benchmarks/RESULTS.md.
"""

from pathlib import Path

from hf_medtl import main

RECIPE = {
    "dataset": "covid19-radiography",
    "model_name_or_path": "cnn",
    "augmentation": "chest",
    "head_dropout": 0.5,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "num_train_epochs": 40,
    "early_stopping_patience": 8,
    "per_device_train_batch_size": 32,
    "output_dir": "runs/cnn_covid4",
    "model_card": str(Path(__file__).parents[1] / "model_cards" / "covid.md"),
}

if __name__ == "__main__":
    main(RECIPE)
