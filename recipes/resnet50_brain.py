"""Fine-tune a ResNet-50 to tell brain MRI slices with a tumour from those without.

accelerate launch recipes/resnet50_brain.py

No score of this recipe has been measured yet.
"""

from pathlib import Path

from hf_medtl import main

RECIPE = {
    "dataset": "brain-tumor-mri",
    "model_name_or_path": "timm/resnet50.a1_in1k",
    "augmentation": "brain",
    "learning_rate": 1e-4,
    "head_learning_rate": 1e-3,
    "num_train_epochs": 15,
    "per_device_train_batch_size": 16,
    "output_dir": "runs/resnet50_brain",
    "model_card": str(Path(__file__).parents[1] / "model_cards" / "brain.md"),
}

if __name__ == "__main__":
    main(RECIPE)
