"""The commands and the Python code of README.md run as printed, on synthetic images, with tiny models."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from hf_medtl import Predictor
from hf_medtl.data.phantoms import write_phantoms
from hf_medtl.training.presets import PRESETS
from tests.support.commands import ROOT, run_cli

README = (ROOT / "README.md").read_text(encoding="utf-8")

# Beginning of a command -> why no test here runs it; a name of a test is that of the one that does the same.
NOT_RUN = {
    "python -m venv": "installs",
    ". .venv/bin/activate": "installs",
    "pip install": "installs",
    "hf download": "tests/publish/test_published.py",
    "python model/handler.py": "tests/publish/test_published.py",
    "curl": "tests/publish/test_published.py",
    "hf-medtl space --models": "tests/space/test_space_folder.py",
    "hf-medtl space": "tests/space/test_demo.py",
    "accelerate launch": "tests/training/test_distributed.py",
    "hf jobs run": "needs Hugging Face Jobs",
    "srun": "needs Slurm",
}
# Flags that a command gets in addition, so that it takes seconds; the last one of two equal flags counts.
QUICK = "--num_train_epochs 1 --per_device_train_batch_size 8 --use_cpu true --disable_tqdm true"
ADDED = {
    "hf-medtl train demo": "--num_train_epochs 1",
    "hf-medtl train --data_dir": f"{QUICK} --model_name_or_path cnn_baseline",
    "hf-medtl train vit_brain": f"{QUICK} --model_name_or_path TINY --data_dir BRAIN",
    "hf-medtl train unet_lungs": f"{QUICK} --encoder tu-test_resnet --encoder_weights none --image_size 64 "
    "--dataset chest-phantoms --data_dir CHEST",
    "hf-medtl push": "--waive external=none",
    "hf-medtl data audit covid19-radiography": "--data_dir BRAIN",
    "hf-medtl data audit": "--data_dir BRAIN",
    "hf-medtl data preview": "--data_dir BRAIN --out preview.png",
    "hf-medtl compare": "--no_latency",
    "python recipes/study.py": "--data_dir BRAIN --use_cpu true",
}
# Part of a command -> what takes its place: names of data sets, models and repositories that a reader replaces, too.
REPLACED = {
    "--folds 5": "--folds 2",
    "--search 20": "--search 2",
    "FOLDER_OR_ID ...": "TINY",
    "1 5 10 25 50 100 --seeds 1 2 3": "50 100 --seeds 1",
    "VIT_S_FOLDER": "TINY",
    "SEED": "1",
    "covid19-radiography --other chest-xray-pneumonia=DIR": "brain-tumor-mri --other brain-phantoms=DIR",
    "--dataset covid-chestxray --data_dir DIR --labels pneumonia=viral_pneumonia --by view --by sex --by age": (
        "--dataset brain-tumor-mri --data_dir OTHER --by source"
    ),
    "data push SET": "data push brain-phantoms",
    "OWNER/": "ci-user/readme-",
}


def commands() -> list[str]:
    """Return the commands of all shell blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 18
    lines = [line for block in blocks if "#SBATCH" not in block for line in block.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(text for line in lines if (text := re.sub(r"(^|\s)#.*", "", line).strip())))


def longest_match(command: str, table: dict[str, str]) -> str:
    """Return the longest beginning of a command in a table, or "" if there is none."""
    return max((start for start in table if command.startswith(start)), key=len, default="")


def test_each_command_that_is_not_run_has_a_test_elsewhere_or_a_reason() -> None:
    skipped = [command for command in commands() if longest_match(command, NOT_RUN)]
    assert {longest_match(command, NOT_RUN) for command in skipped} == {*NOT_RUN} - {"srun"}
    for reason in NOT_RUN.values():
        assert not reason.startswith("tests/") or (ROOT / reason).is_file()


@pytest.fixture(scope="module")
def workspace(phantoms: Path, chest_phantoms: Path, tiny_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the names that README uses: DIR, BRAIN, FOLDER, IMAGE, image.png, images.csv, recipes/."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(phantoms, folder / "DIR")
    shutil.copytree(chest_phantoms, folder / "CHEST")
    shutil.copytree(tiny_checkpoint("vit"), folder / "TINY")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for label, pattern in (("lesion", "yes/Y{}.png"), ("no_lesion", "no/{} no.png")):
        for number, path in enumerate(sorted((phantoms / label).glob("*.png"))):
            for root, image in (("BRAIN", Image.open(path)), ("OTHER", Image.open(path).rotate(9, fillcolor=30))):
                target = folder / root / pattern.format(number)
                target.parent.mkdir(parents=True, exist_ok=True)
                image.save(target)
    images = sorted((phantoms / "lesion").glob("*.png"))
    (folder / "FOLDER").mkdir()
    for path in images[:3]:
        shutil.copy(path, folder / "FOLDER")
    for name in ("IMAGE", "image.png", "scan.dcm"):  # known by its content
        shutil.copy(images[0], folder / name)
    rows = [f"DIR/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(phantoms.glob("*lesion/*.png"))]
    (folder / "images.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    return folder


@pytest.fixture
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the workspace the current folder, with a cache of its own, and draw 48 phantoms instead of 600."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("HF_MEDTL_CACHE", str(workspace / "cache"))

    def draw_few(folder: Path, kind: str, patients: int) -> Path:
        return write_phantoms(folder, kind, patients=patients * 24 // 300)

    monkeypatch.setattr("hf_medtl.data.phantoms.write_phantoms", draw_few)
    monkeypatch.setattr("hf_medtl.data.shortcuts.TREES", 5)
    return workspace


def complete(command: str) -> str:
    """Return a command with REPLACED and ADDED applied."""
    added = ADDED.get(longest_match(command, ADDED), "") if not command.endswith("hf-medtl train") else ""
    for part, other in REPLACED.items():
        command = command.replace(part, other)
    return f"{command} {added}"


@pytest.mark.slow
def test_commands_run_as_printed(in_workspace: Path, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [command for command in commands() if not longest_match(command, NOT_RUN)]
    training = [command for command in wanted if "train" in command.split()[:3]]
    for command in training:
        # Commands that write to the same folder are alternatives: a finished run is not overwritten.
        preset = shlex.split(command)[2:3]
        if preset and "--output_dir" not in command:
            shutil.rmtree(f"runs/{'own_images' if preset == ['--data_dir'] else ''.join(preset)}", ignore_errors=True)
        run_cli(*shlex.split(complete(command))[1:])
    for name in ("a", "b", "c", "covid"):
        shutil.copytree("runs/vit_brain", f"runs/{name}")
    for command in wanted:
        if command in training:
            continue
        words = shlex.split(complete(command))
        if words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            with pytest.raises(SystemExit) as stop:
                runpy.run_path(words[1], run_name="__main__")
            assert not stop.value.code
        else:
            assert words[0] == "hf-medtl", command
            run_cli(*words[1:])
        if words[1:3] == ["card", "new"]:  # whose headings the author then fills in
            shutil.copy(ROOT / "model_cards" / "brain.md", words[3])
    produced = (
        "runs/demo",
        "runs/own_images",
        "runs/vit_brain",
        "runs/folds",
        "runs/best",
        "runs/unet_lungs",
        "runs/both",
    )
    for folder in produced:
        assert (in_workspace / folder / "results.json").is_file(), folder
    for file in ("report.html", "report.pptx", "report.pdf", "maps.csv", "table.parquet", "audit/audit.html"):
        assert (in_workspace / file).stat().st_size > 100, file


@pytest.mark.slow
def test_python_code_runs_as_printed(in_workspace: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 4
    shutil.copytree(finished_run, "runs/vit_brain", dirs_exist_ok=True)
    predictor = Predictor.from_pretrained("runs/vit_brain")
    image = Image.open("image.png").convert("RGB")
    names = {"model": predictor.model, "processor": predictor.processor, "image": image, "images": [image]}
    names["masks"] = [torch.ones(image.size[::-1]).numpy()]
    for code in blocks:
        quick = code.replace('"timm/tf_efficientnet_lite0.in1k"', '"cnn_baseline", num_train_epochs=1, use_cpu=True')
        exec(quick, dict(names))
    assert (in_workspace / "map.png").is_file()


def test_options_named_in_the_text_exist() -> None:
    known = run_cli("train", "--help_all")
    known += "".join(path.read_text(encoding="utf-8") for path in (ROOT / "hf_medtl" / "cli").glob("*.py"))
    known += "".join(path.read_text(encoding="utf-8") for path in (ROOT / "hf_medtl" / "runs").glob("study*.py"))
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    flags = {flag for span in inline for flag in re.findall(r"--[a-z][a-z_0-9]+", span)}
    assert len(flags) > 60
    foreign = {"--help", "--host", "--port"}
    assert {
        flag for flag in flags - foreign if flag[2:].removeprefix("no_") not in known and flag not in known
    } == set()
    assert yaml.safe_load((ROOT / "recipes" / "vit_brain_small.yaml").read_text(encoding="utf-8"))
    assert {"demo", "vit_brain", "unet_lungs"} <= {*PRESETS}
