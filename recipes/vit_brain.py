"""Fine-tune a Vision Transformer to tell brain MRI slices with a tumour from those without.

accelerate launch recipes/vit_brain.py

The default backbone has not been measured yet. With a ViT-S/14 checkpoint, vit_brain_small.yaml and bf16: ROC AUC
0.984, 0.998 and 0.984 on seeds 1, 2 and 3, mean 0.989 [0.970, 0.999] (51 test images each; benchmarks/RESULTS.md),
10 minutes a run on one CPU core.
"""

from pathlib import Path

from hf_medtl import main

RECIPE = {
    "dataset": "brain-tumor-mri",
    "model_name_or_path": "google/vit-base-patch16-224-in21k",
    "augmentation": "brain",
    "learning_rate": 2e-5,
    "head_learning_rate": 1e-3,
    "num_train_epochs": 10,
    "per_device_train_batch_size": 16,
    "output_dir": "runs/vit_brain",
    "model_card": str(Path(__file__).parents[1] / "model_cards" / "brain.md"),
}

if __name__ == "__main__":
    main(RECIPE)
