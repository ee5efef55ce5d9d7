"""Uploads of checkpoints to a Hub branch during training."""

import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import HubStrategy

from hf_medtl.common.files import list_files, write_atomic
from hf_medtl.common.hub_errors import hub_errors, with_retries
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.errors import MedtlError
from hf_medtl.publish.hub import UPLOAD_PATTERNS, commit_files, select_files
from hf_medtl.publish.neutral_files import are_names_public, neutral_files
from hf_medtl.publish.private_names import private_names
from hf_medtl.publish.templates import render

logger = logging.getLogger("hf_medtl")

BRANCH = "checkpoints"
STAGING_FOLDER = ".upload"  # inside the run folder


class CheckpointUploader(TrainerCallback):
    """Upload checkpoints according to --hub_strategy, each as one commit, to a branch; main is for finished runs.

    The branch has the newest weights at its root, with a card that says what they lack; `last-checkpoint` (strategy
    checkpoint) or each `checkpoint-N` (all_checkpoints) has the files for resuming. A checkpoint that is saved before
    the last upload has ended is skipped, but training waits with all_checkpoints and --hub_always_push. The last
    checkpoint is always uploaded. A failed upload is a warning: the checkpoint is on the disk.

    Args:
        repo_id: owner/name of an existing repository.
        licence: Licence of the weights, as `card_metadata` returns it.
    """

    def __init__(self, repo_id: str, licence: Mapping[str, Any]) -> None:
        self.repo_id, self.licence = repo_id, licence
        self.worker = ThreadPoolExecutor(1)
        self.job: Future[None] | None = None
        self.newest: Path | None = None
        self.uploaded: Path | None = None
        self.keep = False  # keep what is on the branch: it belongs to this training

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the branch if training is resumed."""
        self.keep = state.global_step > 0

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Upload the checkpoint that was saved, unless an upload is running."""
        if not state.is_world_process_zero:
            return
        self.newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        waits = args.hub_always_push or args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
        if waits or self.job is None or self.job.done():
            self._submit(args, state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Upload the last checkpoint and wait for it."""
        if self.newest != self.uploaded:
            self._submit(args, state)
        if self.job:
            self.job.result()
        self.worker.shutdown()

    def _submit(self, args: Any, state: TrainerState) -> None:
        if self.job:
            self.job.result()
        assert self.newest is not None
        copy = Path(args.output_dir) / STAGING_FOLDER
        shutil.rmtree(copy, ignore_errors=True)  # left by a killed run
        shutil.copytree(self.newest, copy, copy_function=_link_or_copy)  # Trainer deletes old checkpoints
        epoch = {"epoch": f"{state.epoch or 0:g}", "epochs": f"{args.num_train_epochs:g}"}
        facts = {"name": self.repo_id, "branch": BRANCH, "step": int(self.newest.name.rpartition("-")[2])} | epoch
        folders = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: self.newest.name}
        facts["folder"] = folders.get(args.hub_strategy)
        self.uploaded, self.job = self.newest, self.worker.submit(self._upload, copy, facts)

    def _upload(self, copy: Path, facts: dict[str, Any]) -> None:
        try:
            checkpoint = list_files(copy)
            run = copy.parent
            files = select_files(copy) | {"recipe.yaml": run / "recipe.yaml"}
            tables = {"splits.csv": run / "splits.csv"}
            files |= tables if are_names_public(RunFolder(run)) else neutral_files(run, tables)
            message = f"Training, step {facts['step']}"
            if facts["folder"]:
                files |= {f"{facts['folder']}/{name}": path for name, path in checkpoint.items()}
            files["README.md"] = copy / "README.md"
            metadata = ModelCardData(**self.licence, library_name="transformers", tags=["hf_medtl", "unfinished"])
            card = f"---\n{metadata.to_yaml()}\n---\n\n{render('checkpoint', facts)}"
            write_atomic(files["README.md"], card)
            with hub_errors(f"The checkpoint of step {facts['step']} could not be uploaded", "Training continues."):
                api = HfApi()
                with_retries(lambda: api.create_branch(self.repo_id, branch=BRANCH, exist_ok=True))
                stale = UPLOAD_PATTERNS if self.keep and facts["folder"] not in (None, "last-checkpoint") else ("*",)
                commit_files(api, self.repo_id, files, message, revision=BRANCH, stale=stale, names=private_names(run))
            self.keep = True
        except MedtlError as error:
            logger.warning("%s", error)
        finally:
            shutil.rmtree(copy)


def _link_or_copy(source: str, target: str) -> None:
    """Hard-link a file, or copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
