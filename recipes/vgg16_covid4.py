"""Fine-tune a VGG16 to tell COVID-19, lung opacity, viral pneumonia and normal chest radiographs apart.

accelerate launch recipes/vgg16_covid4.py

No score of this recipe has been measured yet.
"""

from pathlib import Path

from hf_medtl import main

RECIPE = {
    "dataset": "covid19-radiography",
    "model_name_or_path": "timm/vgg16.tv_in1k",
    "augmentation": "chest",
    "head_dropout": 0.5,
    "learning_rate": 2e-5,
    "head_learning_rate": 2e-4,
    "weight_decay": 0.05,
    "num_train_epochs": 15,
    "per_device_train_batch_size": 32,
    "output_dir": "runs/vgg16_covid4",
    "model_card": str(Path(__file__).parents[1] / "model_cards" / "covid.md"),
}

if __name__ == "__main__":
    main(RECIPE)
