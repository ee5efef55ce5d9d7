"""Cache of prepared images: complete or absent after kills, concurrent builds and changed files; equal in workers."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_medtl import MedtlError
from hf_medtl.data import cache
from hf_medtl.data.augmentation import get_augmentation
from hf_medtl.data.cache import prepare_images
from hf_medtl.data.images import read_image
from hf_medtl.data.prepared import PreparedImages, as_arrays
from tests.support.commands import ROOT

# Code of separate processes; arguments: a folder, and seconds per image. They share the cache of the test.
PRELUDE = """
import hashlib, resource, sys, time
from pathlib import Path
import numpy as np
from hf_medtl.common.system import cache_dir
from hf_medtl.data.cache import prepare_images
from hf_medtl.data.prepared import PreparedImages, as_arrays

folder, delay, calls = Path(sys.argv[1]), float(sys.argv[2]), []
paths = sorted(folder.glob("*.png"))
digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
def small(images):
    calls.append(time.sleep(delay))
    return np.stack([np.asarray(image.resize((16, 12))) for image in images])
"""
BUILDER = (
    PRELUDE
    + """
pixels = np.concatenate(as_arrays(prepare_images(paths, digests, small, "k")))
print(len(pixels), hashlib.sha256(pixels.tobytes()).hexdigest(), len(calls))
"""
)
MEASURED = (
    PRELUDE
    + """
def peak():
    if Path("/proc/self/status").exists():  # getrusage would begin with the parent's
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
def same(images):
    return np.stack([np.asarray(image) for image in images])
prepare_images(paths, digests, same, "warm")
before = peak()
prepared = prepare_images(paths * 500, digests * 500, same, "k")
PreparedImages(prepared, range(2000), [0] * 2000)[1999]
print(peak() - before, max(path.stat().st_size for path in (cache_dir() / "pictures").glob("*.arrow")) / 1e6)
"""
)

called: list[int] = []


def small(images: list[Image.Image]) -> np.ndarray:
    called.append(1)
    return np.stack([np.asarray(image.resize((16, 12))) for image in images])


def unchanged(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_images(folder: Path, number: int, size: tuple[int, int] = (30, 40), seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(number):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i:05}.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture
def cache_folder(tmp_path, monkeypatch) -> Path:
    """Return the folder of prepared images in an empty cache."""
    monkeypatch.setenv("HF_MEDTL_CACHE", str(tmp_path / "cache"))
    called.clear()
    return tmp_path / "cache" / "pictures"


def start(code: str, folder: Path, delay: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, "-c", code, str(folder), str(delay)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)


def build(paths: list[Path], key: str = "k") -> np.ndarray:
    return np.concatenate(as_arrays(prepare_images(paths, list(map(sha, paths)), small, key)))


def wait_for(pattern: str, cache_folder: Path) -> None:
    for _ in range(30000):
        if any(path.stat().st_size > 0 for path in cache_folder.glob(pattern)):
            return
        time.sleep(0.01)
    raise AssertionError(f"no {pattern}")


def test_cached_pixels_equal_direct_reading_and_are_read_once(cache_folder, tmp_path):
    paths = write_images(tmp_path / "data", 150)
    pixels = build(paths)
    assert np.array_equal(pixels, np.concatenate([small([read_image(path)]) for path in paths]))
    called.clear()
    prepared = prepare_images(paths, list(map(sha, paths)), small, "k")
    assert not called
    assert {path.suffix for path in cache_folder.iterdir()} == {".arrow", ".lock"}
    assert [len(view) for view in as_arrays(prepared)] == [64, 64, 22]
    assert all(not view.flags.owndata and not view.flags.writeable for view in as_arrays(prepared))
    again = datasets.Dataset.from_file(str(next(cache_folder.glob("*.arrow"))))  # plain `datasets` reads it
    assert np.array_equal(again.with_format("numpy")[99]["pixels"], pixels[99])


def test_key_depends_on_files_order_and_preprocessing(cache_folder, tmp_path, monkeypatch):
    paths = write_images(tmp_path / "data", 5)
    first = build(paths)
    build(paths, "another")
    assert np.array_equal(build(paths[::-1]), first[::-1])
    write_images(tmp_path / "data", 5, seed=1)
    assert not np.array_equal(build(paths), first)
    assert len(list(cache_folder.glob("*.arrow"))) == 4
    monkeypatch.setattr(cache, "LIBRARIES", ("scipy",))
    build(paths)
    assert len(list(cache_folder.glob("*.arrow"))) == 5


@pytest.mark.slow
def test_two_concurrent_processes_prepare_once(cache_folder, tmp_path):
    write_images(tmp_path / "data", 150)
    processes = [start(BUILDER, tmp_path / "data", 0.01) for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0].split() for process in processes]
    assert outputs[0][:2] == outputs[1][:2]
    assert outputs[0][0] == "150"
    assert sorted(int(calls) for _, _, calls in outputs) == [0, 150]
    assert not list(cache_folder.glob("*.partial"))


@pytest.mark.slow
def test_cache_of_killed_process_is_rebuilt(cache_folder, tmp_path):
    paths = write_images(tmp_path / "data", 200)
    process = start(BUILDER, tmp_path / "data", 0.02)
    wait_for("*.partial", cache_folder)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(cache_folder.glob("*.partial"))
    assert not list(cache_folder.glob("*.arrow"))
    other = write_images(tmp_path / "other", 3)
    build(other)  # removes the partial file of the dead process
    assert not list(cache_folder.glob("*.partial"))
    began = time.monotonic()
    assert np.array_equal(build(paths), np.concatenate([small([read_image(path)]) for path in paths]))
    assert time.monotonic() - began < 10  # does not wait for the dead process


@pytest.mark.slow
def test_another_run_goes_on_when_the_one_that_prepares_its_images_is_killed(cache_folder, tmp_path, caplog):
    caplog.set_level("INFO", "hf_medtl")
    paths = write_images(tmp_path / "data", 200)
    process = start(BUILDER, tmp_path / "data", 0.05)
    wait_for("*.partial", cache_folder)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(build, paths)
        while "Waiting for another process" not in caplog.text:
            assert not waiting.done()
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert np.array_equal(waiting.result(60), np.concatenate([small([read_image(path)]) for path in paths]))
    assert len(called) == 200 + 200  # prepared here once, and read once for the comparison
    assert not list(cache_folder.glob("*.partial"))


@pytest.mark.slow
def test_partial_file_of_running_process_is_kept(cache_folder, tmp_path):
    write_images(tmp_path / "data", 200)
    process = start(BUILDER, tmp_path / "data", 0.02)
    wait_for("*.partial", cache_folder)
    build(write_images(tmp_path / "other", 3))
    assert process.communicate(timeout=600)[0].split()[0] == "200"


def test_truncated_file_is_rebuilt(cache_folder, tmp_path):
    paths = write_images(tmp_path / "data", 150)
    expected = build(paths)
    target = next(cache_folder.glob("*.arrow"))
    content = target.read_bytes()
    for length in (0, 100, len(content) // 2):
        target.write_bytes(content[:length])
        assert np.array_equal(build(paths), expected)


@pytest.mark.parametrize("which", [0, 70])
def test_changed_or_missing_files_raise(cache_folder, tmp_path, which):
    paths = write_images(tmp_path / "data", 80)
    digests = list(map(sha, paths))
    Image.new("RGB", (40, 30)).save(paths[which])
    with pytest.raises(MedtlError, match=rf"{paths[which].name} changed while"):
        prepare_images(paths, digests, small, "k")
    paths[which].unlink()
    with pytest.raises(MedtlError, match=rf"{paths[which].name} can no longer be read \(No such file"):
        prepare_images(paths, digests, small, "k")
    paths[which].write_bytes(b"not an image")
    digests[which] = sha(paths[which])
    with pytest.raises(MedtlError, match=rf"{paths[which].name}: this is text, not an image"):
        prepare_images(paths, digests, small, "k")
    assert not list(cache_folder.glob("*.arrow")) + list(cache_folder.glob("*.partial"))


def test_mixed_image_sizes_and_full_disk_raise(cache_folder, tmp_path, monkeypatch, caplog):
    paths = write_images(tmp_path / "data", 3)
    write_images(tmp_path / "data", 1, size=(8, 8))
    with pytest.raises(MedtlError, match="expected the same size"):
        prepare_images(paths, list(map(sha, paths)), unchanged, "k")
    with monkeypatch.context() as patch, pytest.raises(MedtlError, match=r"need 0\.00 GB .* 0\.00 GB are free"):
        patch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10**9, 10**9, 1000))
        build(paths)
    assert not list(cache_folder.glob("*.arrow")) + list(cache_folder.glob("*.partial"))
    with caplog.at_level("INFO", logger="hf_medtl"):
        build(paths)
    assert f"Preparing 3 images of 12 × 16 pixels: 0.00 GB in {cache_folder}" in caplog.text


def test_unused_files_are_removed(cache_folder, tmp_path):
    paths = write_images(tmp_path / "data", 3)
    build(paths)
    build(paths, "kept")
    old = min(cache_folder.glob("*.arrow"), key=lambda path: path.stat().st_mtime)
    os.utime(old, (0, 0))
    build(paths, "new")
    assert not old.exists()
    assert len(list(cache_folder.glob("*.arrow"))) == 2


@pytest.mark.slow
def test_memory_does_not_grow_with_images(cache_folder, tmp_path):
    write_images(tmp_path / "data", 4, (224, 224))
    process = start(MEASURED, tmp_path / "data")
    grown, size = map(float, process.communicate(timeout=600)[0].split())
    assert size > 300
    assert grown < 100, grown  # 300 MB of images


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_same_batches_in_every_epoch(cache_folder, tmp_path, context):
    paths = write_images(tmp_path / "data", 100)
    prepared = prepare_images(paths, list(map(sha, paths)), small, "k")
    data = PreparedImages(prepared, range(30, 90), range(60), get_augmentation("chest"), seed=5)

    def epoch(number: int, workers: int) -> list[torch.Tensor]:
        data.epoch.fill_(number)
        more = {"multiprocessing_context": context, "num_workers": workers} if workers else {}
        batches = list(DataLoader(data, batch_size=16, **more))
        return [torch.cat([batch[name] for batch in batches]) for name in ("pixel_values", "labels")]

    workers = 2 if context == "fork" else 1
    first, second = epoch(0, 0), epoch(1, 0)
    assert first[0].shape == (60, 3, 12, 16)
    assert first[1].tolist() == list(range(60))
    assert not torch.equal(first[0], second[0])
    for number, expected in enumerate((first, second)):
        assert all(torch.equal(a, b) for a, b in zip(epoch(number, workers), expected, strict=True))
    plain = PreparedImages(prepared, [99, 0], [7, 8])
    assert np.array_equal(plain[0]["pixel_values"].permute(1, 2, 0), small([read_image(paths[99])])[0])


def test_grey_images_among_colour_images_are_lossless(cache_folder, tmp_path):
    paths = write_images(tmp_path / "data", 4)
    for path in paths[::2]:
        Image.open(path).convert("L").save(path)
    prepared = prepare_images(paths, list(map(sha, paths)), small, "k")
    assert prepared["grey"][:] == [True, False, True, False]
    plain = PreparedImages(prepared, range(4), [0] * 4)
    augment = get_augmentation("chest")
    augmented = PreparedImages(prepared, range(4), [0] * 4, augment, seed=3)
    for i, path in enumerate(paths):
        expected = small([read_image(path)])[0]
        assert np.array_equal(plain[i]["pixel_values"].permute(1, 2, 0), expected)
        draw = np.random.SeedSequence([3, 0, i]).generate_state(1)
        assert np.array_equal(augmented[i]["pixel_values"].permute(1, 2, 0), augment(expected, int(draw[0])))


def write_pairs(folder: Path, number: int = 4, size: tuple[int, int] = (30, 40)) -> tuple[list[Path], list[list[Path]]]:
    """Write images and masks of the pixels brighter than 127; return the files of both."""
    rng = np.random.default_rng(0)
    (folder / "masks").mkdir(parents=True)
    paths: list[Path] = []
    masks: list[list[Path]] = []
    for i in range(number):
        bright = np.kron(rng.integers(0, 2, (3, 4)), np.ones((size[0] // 3, size[1] // 4))).astype(np.uint8)
        for name, pixels in ((f"{i}.png", bright * 150 + 50), (f"masks/{i}.png", bright * 255)):
            Image.fromarray(pixels).save(folder / name)
        paths.append(folder / f"{i}.png")
        masks.append([folder / "masks" / f"{i}.png"])
    return paths, masks


def build_both(paths, masks, key: str = "k", **more) -> datasets.Dataset:
    return prepare_images(paths, list(map(sha, paths)), small, key, masks, **more)


def test_masks_are_cached_with_their_images(cache_folder, tmp_path):
    paths, masks = write_pairs(tmp_path / "data", 70)
    prepared = build_both(paths, masks)
    pixels, indices = np.concatenate(as_arrays(prepared)), np.concatenate(as_arrays(prepared, "mask"))
    assert indices.shape == (70, 12, 16)
    assert set(np.unique(indices)) == {0, 1}
    assert [view.shape for view in as_arrays(prepared, "mask")] == [(64, 12, 16), (6, 12, 16)]
    assert all(not view.flags.owndata and not view.flags.writeable for view in as_arrays(prepared, "mask"))
    assert np.array_equal(pixels, build(paths))  # images do not depend on masks
    centres = np.zeros((12, 16), bool)
    centres[2::4, 2::4] = True  # away from edges, which the filter blurs
    assert np.array_equal(indices[:, centres], pixels[:, centres, 0] > 127)
    called.clear()
    build_both(paths, masks)
    assert not called
    with_masks, labelled = (
        PreparedImages(prepared, [69, 3], [0, 1]),
        PreparedImages(prepare_images(paths, list(map(sha, paths)), small, "k"), [0], [7]),
    )
    item = with_masks[0]
    assert item["labels"].dtype == torch.int64
    assert np.array_equal(item["labels"], indices[69])
    assert labelled[0]["labels"] == 7
    batch = next(iter(DataLoader(with_masks, batch_size=2)))
    assert batch["labels"].shape == (2, 12, 16)


def test_key_depends_on_masks_and_values(cache_folder, tmp_path):
    paths, masks = write_pairs(tmp_path / "data", 2)
    first = np.concatenate(as_arrays(build_both(paths, masks), "mask"))
    build_both(paths, masks, values={0: 0, 255: 1})
    swapped = np.concatenate(as_arrays(build_both(paths, masks, values={0: 1, 255: 0}), "mask"))
    assert np.array_equal(swapped, 1 - first)
    Image.new("L", (40, 30)).save(masks[0][0])
    assert np.concatenate(as_arrays(build_both(paths, masks), "mask"))[0].max() == 0
    assert len(list(cache_folder.glob("*.arrow"))) == 4


def test_reads_masks_of_other_sizes_modes_and_parts(cache_folder, tmp_path):
    paths, masks = write_pairs(tmp_path / "data", 1)
    expected = np.concatenate(as_arrays(build_both(paths, masks), "mask"))
    whole = Image.open(masks[0][0])
    mask = np.asarray(whole)
    for size in ((80, 60), (400, 299), (20, 15)):  # 299: rounded
        whole.resize(size, Image.Resampling.NEAREST).convert("RGB").save(masks[0][0])
        assert (np.concatenate(as_arrays(build_both(paths, masks), "mask")) == expected).mean() > 0.97
    left, right = mask * (np.arange(40) < 20), mask * (np.arange(40) >= 20)
    halves = [tmp_path / "data" / "masks" / name for name in ("left.png", "right.png")]
    for path, half in zip(halves, (left, right), strict=True):
        Image.fromarray(half.astype(np.uint8)).save(path)
    assert np.array_equal(np.concatenate(as_arrays(build_both(paths, [halves]), "mask")), expected)
    Image.fromarray((left // 255 + right // 255 * 2).astype(np.uint8)).save(masks[0][0])
    classes = np.concatenate(as_arrays(build_both(paths, masks, values={0: 0, 1: 1, 2: 2}), "mask"))[0]
    assert np.array_equal(classes > 0, expected[0])
    assert np.array_equal(classes == 2, (expected[0] > 0) & (np.arange(16) >= 8))


def test_masks_that_do_not_fit_raise(cache_folder, tmp_path):
    paths, masks = write_pairs(tmp_path / "data", 3)
    broken = masks[1][0]
    with pytest.raises(MedtlError, match=r"1.png has no mask"):
        build_both(paths, [masks[0], [], masks[2]])
    for content, more, words in (
        (np.zeros((40, 30), np.uint8), {}, r"masks.1.png: 30 × 40 pixels, but its image .*1.png has 40 × 30"),
        (np.zeros((30, 30), np.uint8), {}, r"30 × 30 pixels"),
        (np.arange(1200, dtype=np.uint8).reshape(30, 40), {}, r"masks.1.png: expected a mask in black and white"),
        (np.full((30, 40), 7, np.uint8), {"values": {0: 0, 255: 1}}, r"masks.1.png: .* values 0, 255, also found 7"),
    ):
        Image.fromarray(content).save(broken)
        with pytest.raises(MedtlError, match=words):
            build_both(paths, masks, **more)
    other = tmp_path / "data" / "masks" / "other.png"
    Image.new("L", (4, 3)).save(other)
    with pytest.raises(MedtlError, match=r"0.png and .*other.png: \(3, 4\) pixels"):
        build_both(paths, [[masks[0][0], other], masks[0], masks[2]])
    broken.write_bytes(b"no mask")
    with pytest.raises(MedtlError, match=r"masks.1.png: this is text, not an image"):
        build_both(paths, masks)
    broken.unlink()
    with pytest.raises(MedtlError, match=r"masks.1.png, the mask of .*1.png, can't be read \(No such file"):
        build_both(paths, masks)
    assert not list(cache_folder.glob("*.arrow")) + list(cache_folder.glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("context", ["none", "fork", "spawn"])
def test_augmentation_moves_image_and_mask_together(cache_folder, tmp_path, context):
    paths, masks = write_pairs(tmp_path / "data", 6, size=(120, 160))

    prepared = prepare_images(paths, list(map(sha, paths)), unchanged, "unchanged", masks)
    augment = get_augmentation("light")
    data = PreparedImages(prepared, range(6), [0] * 6, augment, seed=3)
    plain = PreparedImages(prepared, range(6), [0] * 6)
    more = {} if context == "none" else {"multiprocessing_context": context, "num_workers": 1}
    moved = 0
    for i, item in enumerate(DataLoader(data, batch_size=None, **more)):
        draw = int(np.random.SeedSequence([3, 0, i]).generate_state(1)[0])
        pixels, mask = np.concatenate(as_arrays(prepared))[i], np.concatenate(as_arrays(prepared, "mask"))[i]
        expected = augment(pixels, draw, mask)
        assert np.array_equal(item["pixel_values"].permute(1, 2, 0), expected[0])
        assert np.array_equal(item["labels"], expected[1])
        # Bright inside, dark outside: image and mask agree except for a pixel at the edges.
        shown = item["pixel_values"][0].numpy() > 110
        assert (shown == (item["labels"].numpy() == 1)).mean() > 0.95
        moved += not torch.equal(item["labels"], plain[i]["labels"])
    assert moved >= 4


def test_real_masks_fit_their_images(cache_folder, shared):
    from hf_medtl import load

    loaded = load("lung-masks", shared / "data" / "chest-xray-masks-and-labels")
    rows = loaded.table[loaded.table["mask"] != ""].head(12)
    paths = [loaded.root / path for path in rows["path"]]
    masks = [[loaded.root / part for part in cell.split("|")] for cell in rows["mask"]]
    prepared = build_both(paths, masks)
    lungs = np.concatenate(as_arrays(prepared, "mask"))
    assert ((lungs.mean(axis=(1, 2)) > 0.1) & (lungs.mean(axis=(1, 2)) < 0.6)).all()
    pixels = np.concatenate(as_arrays(prepared))[..., 0]
    assert np.mean([p[m == 1].mean() < p[4:8, 7:9].mean() for p, m in zip(pixels, lungs, strict=True)]) > 0.9  # spine
