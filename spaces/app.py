"""A page to try models of hf_medtl on images. For research and education only: not a medical device."""

from pathlib import Path

from hf_medtl.space.serve import main

HERE = Path(__file__).parent
# Run folders beside this file, or Hub ids. If empty, small models of synthetic images are trained at the start.
MODELS: list[str] = []

if __name__ == "__main__":
    main(MODELS, HERE / "examples")
