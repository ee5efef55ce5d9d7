"""Feature extraction: a frozen body computed once, against running it in each epoch.

    python benchmarks/feature_cache.py --model_name_or_path FOLDER_OR_ID --data_dir DIR   # brain-tumor-mri
    python benchmarks/feature_cache.py --model_name_or_path FOLDER_OR_ID                  # synthetic brain slices

Both ways train the same head on the same split with the same seed, without augmentation, and save the full model. It
prints seconds of training (computing the features included), accuracy on the validation split, and the largest
difference between the logits of the two saved models on the validation images.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification, set_seed


def train(cached: bool, options: argparse.Namespace, data: Path, folder: Path) -> tuple[float, float, Any]:
    """Seconds, accuracy on the validation split, and its images; the model is saved to `folder`."""
    from hf_medtl import Recipe, load
    from hf_medtl.runs.preprocessing import preprocess_splits
    from hf_medtl.tasks import task_for_dataset
    from hf_medtl.training.trainer import MedicalTrainer

    recipe = Recipe(
        strategy="feature_extraction", cache_features=cached, augmentation="none", data_dir=str(data), seed=1,
        dataset="brain-tumor-mri" if options.data_dir else "brain-phantoms", output_dir=str(folder / "run"),
        model_name_or_path=options.model_name_or_path, num_train_epochs=options.epochs, learning_rate=1e-3,
        early_stopping_patience=0, load_best_model_at_end=False, save_strategy="no", disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    loaded = load(recipe.dataset, data, seed=1)
    set_seed(1)
    task = task_for_dataset(loaded)
    model, processor = task.build(recipe, loaded.labels)
    loss = task.loss(recipe, loaded.labels, task.targets(loaded, "train"))
    split = preprocess_splits(recipe, loaded, processor)
    trainer = MedicalTrainer(recipe, model, processor, **split, loss=loss, metrics=task.validation_metrics)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    model.save_pretrained(folder)
    return seconds, trainer.evaluate()["eval_accuracy"], (trainer, split["validation"])


@torch.no_grad()
def logits(folder: Path, trainer: Any, data: Any) -> torch.Tensor:
    """(n, K) of the saved model, as stock code loads it."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval().to(trainer.args.device)
    batches = torch.utils.data.DataLoader(data, 32)
    return torch.cat([model(pixel_values=trainer._prepare_inputs(b)["pixel_values"]).logits.cpu() for b in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data = options.data_dir
        if data is None:
            from hf_medtl.data.phantoms import write_phantoms

            data = write_phantoms(Path(place) / "data", "brain", patients=60, images=2, size=128)
        rows, outputs = {}, []
        for cached in (True, False):
            folder = Path(place) / str(cached)
            seconds, accuracy, rest = train(cached, options, data, folder)
            rows[cached] = (seconds, accuracy)
            outputs.append(logits(folder, *rest))
    difference = float((outputs[0] - outputs[1]).abs().max())
    name = Path(options.model_name_or_path).name
    print("\n| body | epochs | way | training, s | faster | validation accuracy | largest difference of logits |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for cached, way in ((False, "body in each epoch"), (True, "features computed once")):
        seconds, accuracy = rows[cached]
        print(
            f"| {name} | {options.epochs} | {way} | {seconds:.1f} | {rows[False][0] / seconds:.1f} × | {accuracy:.3f} "
            f"| {difference:.1e} |"
        )


if __name__ == "__main__":
    main()
