"""Arguments of quick runs, and functions that run commands."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
WAIVED = dict.fromkeys(  # fields that --model_card would provide
    ("intended_use", "out_of_scope", "limits", "population", "reference_standard"), "a test"
)
COMMAND = Path(sys.executable).with_name("hf-medtl")  # the environment need not be activated


def options(phantoms: Path, backbone: Path, output: Path, **more: object) -> dict[str, object]:
    """Return the arguments of a Recipe whose run takes seconds."""
    return {
        "dataset": "brain-phantoms",
        "data_dir": str(phantoms),
        "model_name_or_path": str(backbone),
        "output_dir": str(output),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
        **more,
    }


def flags(**values: object) -> list[str]:
    """Return the arguments as command-line flags."""
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def configure_hub(hub: str, path: str, settings: object) -> None:
    """Send a control request to the loopback Hub."""
    request = urllib.request.Request(f"{hub}/{path}", json.dumps(settings).encode(), method="POST")
    urllib.request.urlopen(request, timeout=10).close()


def run_command(
    *command: object, timeout: float = 600, input: str | None = None, **env: str
) -> subprocess.CompletedProcess:
    """Run a command in the project root and capture its output."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        input=input,
        timeout=timeout,
    )


def run_cli(*words: object) -> str:
    """Run `hf-medtl` in this process and return its output."""
    from hf_medtl.cli.app import app

    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output
