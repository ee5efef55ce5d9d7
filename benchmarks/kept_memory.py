"""Steps of training on the CPU with freed memory handed back to the system, as glibc does, and kept.

    python benchmarks/kept_memory.py [--steps 12] [--threads 1]

Each way runs in a process of its own, in turns. No data are needed: images and weights are random.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

NETWORKS = {
    "U-Net on EfficientNet-Lite0, 8 × 256²": ("unet", 8, 256),
    "EfficientNet-Lite0, 16 × 224²": ("timm/tf_efficientnet_lite0.in1k", 16, 224),
    "ViT-S/16, 16 × 224²": ("vit", 16, 224),
}


def steps(name: str, batch: int, size: int, keep: bool, number: int, threads: int) -> None:
    """Print the seconds of each step and the peak memory."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from hf_medtl.models.build import build_classifier
    from hf_medtl.models.segmenter import build_segmenter
    from hf_medtl.training.runtime import keep_freed_memory, peak_memory_mb

    if keep and not keep_freed_memory():
        sys.exit("There is no glibc here, or MALLOC_* is set.")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    labels = ("background", "lungs")
    if name == "unet":
        model, _ = build_segmenter(name, labels, encoder="tu-tf_efficientnet_lite0", encoder_weights="none")
    elif name == "vit":
        model = ViTForImageClassification(ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536))
    else:
        model, _ = build_classifier(name, labels, from_scratch=True)
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    seconds = []
    for _ in range(number):
        started = time.process_time()  # of this process, so that others on the machine matter less
        model(pixel_values=images).logits.float().log_softmax(1)[:, 0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    print(json.dumps([statistics.median(seconds[2:]), peak_memory_mb()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="of each process, the first two of which do not count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="processes of each way, in turns")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, batch, size, keep = options.one
        steps(name, int(batch), int(size), keep == "kept", options.steps, options.threads)
        return
    print("| network | CPU seconds a step, handed back | kept | ratio | peak MB, handed back | kept |")
    print("|---|---:|---:|---:|---:|---:|")
    for title, one in NETWORKS.items():
        found: dict[str, list[list[float]]] = {"handed back": [], "kept": []}
        for _ in range(options.rounds):
            for way, values in found.items():
                command = [sys.executable, __file__, "--one", *map(str, one), way]
                command += ["--steps", str(options.steps), "--threads", str(options.threads)]
                values.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        usual, kept = ([statistics.median(x) for x in zip(*values, strict=True)] for values in found.values())
        print(
            f"| {title} | {usual[0]:.2f} | {kept[0]:.2f} | {usual[0] / kept[0]:.2f} | {usual[1]:.0f} | {kept[1]:.0f} |"
        )


if __name__ == "__main__":
    main()
