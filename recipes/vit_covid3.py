"""Fine-tune a Vision Transformer to tell COVID-19, pneumonia and normal chest radiographs apart.

accelerate launch recipes/vit_covid3.py

No score of this recipe has been measured yet.
"""

from pathlib import Path

from hf_medtl import main

RECIPE = {
    "dataset": "chest-xray-covid19-pneumonia",
    "model_name_or_path": "google/vit-base-patch16-224-in21k",
    "augmentation": "chest",
    "learning_rate": 2e-5,
    "head_learning_rate": 1e-3,
    "num_train_epochs": 10,
    "per_device_train_batch_size": 16,
    "output_dir": "runs/vit_covid3",
    "model_card": str(Path(__file__).parents[1] / "model_cards" / "covid.md"),
}

if __name__ == "__main__":
    main(RECIPE)
