"""What a published model needs to answer over HTTP: `handler.py`, and what that needs in turn."""

import shutil
from pathlib import Path

HANDLER = Path(__file__).with_name("handler.py")


def put_handler(folder: Path) -> None:
    """Copy `handler.py` into a run's folder and write its `requirements.txt`, besides torch."""
    shutil.copyfile(HANDLER, folder / HANDLER.name)
    config = (folder / "config.json").read_text(encoding="utf-8")
    needed = {
        "transformers>=5.17,<6": True,
        "torchvision": True,
        "timm>=1.0.20": '"timm_wrapper"' in config,
        "segmentation-models-pytorch>=0.5": any(folder.rglob("smp.py")),
        "opencv-python-headless>=4.9": any(folder.rglob("processor.py")),
    }
    lines = [line for line, is_needed in needed.items() if is_needed]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
