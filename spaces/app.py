"""A page to try models on pictures: hf_medtl's, with these models. For research and education, not a medical device."""

from pathlib import Path

from hf_medtl.space.serve import main

HERE = Path(__file__).parent
# Run folders beside this file, or ids on the Hub; with none, small models of drawn pictures are made at the start.
MODELS: list[str] = []

if __name__ == "__main__":
    main(MODELS, HERE / "examples")
