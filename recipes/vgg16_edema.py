"""Fine-tune a VGG16 to tell chest radiographs with pulmonary edema from those without.

accelerate launch recipes/vgg16_edema.py

The last convolution block is trained with the head, with dropout and weight decay against overfitting on a small set.
To train only the head: --strategy feature_extraction.

No score of this recipe has been measured yet.
"""

from pathlib import Path

from hf_medtl import main

RECIPE = {
    "dataset": "pulmonary-edema",
    "model_name_or_path": "timm/vgg16.tv_in1k",
    "augmentation": "chest",
    "strategy": "last_n",
    "unfreeze_blocks": 1,
    "head_dropout": 0.5,
    "learning_rate": 2e-5,
    "head_learning_rate": 2e-4,
    "weight_decay": 0.05,
    "num_train_epochs": 15,
    "per_device_train_batch_size": 32,
    "output_dir": "runs/vgg16_edema",
    "model_card": str(Path(__file__).parents[1] / "model_cards" / "edema.md"),
}

if __name__ == "__main__":
    main(RECIPE)
