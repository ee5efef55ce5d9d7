"""What a command leaves in its folder if it is killed while it writes there."""

import json
import socket
from pathlib import Path

from hf_medtl.common.run_folder import UNFINISHED
from hf_medtl.runs.lock import RUN_LOCK


def leave_killed(folder: Path) -> Path:
    """Fill a folder as a command does that is killed while its files get their places: some are there, some not."""
    staging = folder / f".{'0' * 32}.partial"  # of another machine, perhaps
    (staging / "figures").mkdir(parents=True)
    (folder / RUN_LOCK).touch()
    owner = {"host": socket.gethostname(), "process": 1, "started": 5.0, "since": "noon", "beat": 3}
    (folder / f"{RUN_LOCK}.json").write_text(json.dumps(owner), encoding="utf-8")
    (staging / "figures" / "old.png").write_bytes(b"half")
    for name in ("README.md", "older.csv"):
        (folder / name).write_text("of the killed process", encoding="utf-8")
    files = ["README.md", "figures/old.png", "older.csv"]
    (folder / UNFINISHED).write_text(json.dumps({"note": "", "files": files}), encoding="utf-8")
    return folder
