"""Train a U-Net to segment the lungs on chest radiographs of two hospitals (Shenzhen and Montgomery).

accelerate launch recipes/unet_lungs.py

The encoder starts from ImageNet weights, from the Hub or --encoder_weights FOLDER. Results are also by hospital.

With EfficientNet-Lite0 weights of ImageNet-1k, on a partial copy of 134 images with masks: Dice 0.956 and 0.958 on
seeds 1 and 2 (27 test images each), mean 0.957 [0.948, 0.964]; Shenzhen 0.949, Montgomery 0.968; from random weights
0.947. Five and a half minutes on two CPU cores; see benchmarks/RESULTS.md.
"""

from pathlib import Path

from hf_medtl import main

RECIPE = {
    "dataset": "lung-masks",
    "task": "image-segmentation",
    "model_name_or_path": "unet",
    "image_size": 256,
    "augmentation": "chest",
    "loss": "bce_dice",
    "learning_rate": 3e-4,
    "head_learning_rate": 1e-3,
    "num_train_epochs": 20,
    "per_device_train_batch_size": 8,
    "largest_components": 2,
    "fill_holes": True,
    "output_dir": "runs/unet_lungs",
    "model_card": str(Path(__file__).parents[1] / "model_cards" / "lungs.md"),
}

if __name__ == "__main__":
    main(RECIPE)
