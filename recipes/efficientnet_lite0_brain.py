"""Fine-tune an EfficientNet-Lite0 to tell brain MRI slices with a tumour from those without.

accelerate launch recipes/efficientnet_lite0_brain.py

Five folds of the 253 slices, seed 1, with weights of ImageNet-1k: ROC AUC 0.958 [0.916, 0.980], accuracy 0.913
[0.863, 0.946], every slice tested by a model that had not seen it; 5 minutes a fold on one CPU core. See
benchmarks/RESULTS.md.
"""

from pathlib import Path

from hf_medtl import main

RECIPE = {
    "dataset": "brain-tumor-mri",
    "model_name_or_path": "timm/tf_efficientnet_lite0.in1k",
    "preprocessing": "brain_crop",
    "augmentation": "brain",
    "mixup": 0.2,
    "learning_rate": 1e-3,
    "head_learning_rate": 2e-3,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 16,
    "ema_decay": 0.95,
    "early_stopping_patience": 0,
    "load_best_model_at_end": False,
    "validation_fraction": 0.1,
    "output_dir": "runs/efficientnet_lite0_brain",
    "model_card": str(Path(__file__).parents[1] / "model_cards" / "brain.md"),
}

if __name__ == "__main__":
    main(RECIPE)
