"""Weights of other libraries as plain folders: torchxrayvision, open_clip, and files for timm's architectures."""
