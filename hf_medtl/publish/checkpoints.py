"""Checkpoints to the Hub while training goes on."""

import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import HubStrategy

from hf_medtl.common.files import list_files
from hf_medtl.errors import MedtlError
from hf_medtl.publish.hub import UPLOAD_PATTERNS, commit_files, hub_errors, select_files, with_retries
from hf_medtl.publish.templates import render

logger = logging.getLogger("hf_medtl")

BRANCH = "checkpoints"
COPY = ".upload"  # in the run folder


class Checkpoints(TrainerCallback):
    """Uploads checkpoints as --hub_strategy says, each as one commit, to a branch of theirs; main is for finished runs.

    At the branch's root are the newest weights, with a card that says what they are not; beside them `last-checkpoint`
    (checkpoint) or each `checkpoint-N` (all_checkpoints) has what training goes on from. A checkpoint that is there
    before the last one's upload has ended is left out, but training waits for all_checkpoints and --hub_always_push.
    The last one is always uploaded. An upload that fails is a warning: the checkpoint is on the disk.

    Args:
        repo_id: owner/name, of a repository that is there.
        licence: of the weights.
    """

    def __init__(self, repo_id: str, licence: str) -> None:
        self.repo_id, self.licence = repo_id, licence
        self.worker = ThreadPoolExecutor(1)
        self.job: Future[None] | None = None
        self.newest: Path | None = None
        self.sent: Path | None = None
        self.keep = False  # what is on the branch: it is of this training

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.keep = state.global_step > 0

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        patient = args.hub_always_push or args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
        if patient or self.job is None or self.job.done():
            self._send(args, state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.newest != self.sent:
            self._send(args, state)
        if self.job:
            self.job.result()
        self.worker.shutdown()

    def _send(self, args: Any, state: TrainerState) -> None:
        if self.job:
            self.job.result()
        assert self.newest is not None
        copy = Path(args.output_dir) / COPY
        shutil.rmtree(copy, ignore_errors=True)  # of a training that was killed
        shutil.copytree(self.newest, copy, copy_function=link)  # Trainer deletes old checkpoints
        epoch = {"epoch": f"{state.epoch or 0:g}", "epochs": f"{args.num_train_epochs:g}"}
        facts = {"name": self.repo_id, "branch": BRANCH, "step": int(self.newest.name.rpartition("-")[2])} | epoch
        folders = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: self.newest.name}
        facts["folder"] = folders.get(args.hub_strategy)
        self.sent, self.job = self.newest, self.worker.submit(self._upload, copy, facts)

    def _upload(self, copy: Path, facts: dict[str, Any]) -> None:
        try:
            whole = list_files(copy)
            files = select_files(copy) | {name: copy.parent / name for name in ("recipe.yaml", "splits.csv")}
            if facts["folder"]:
                files |= {f"{facts['folder']}/{name}": path for name, path in whole.items()}
            files["README.md"] = copy / "README.md"
            about = ModelCardData(license=self.licence, library_name="transformers", tags=["hf_medtl", "unfinished"])
            card = f"---\n{about.to_yaml()}\n---\n\n{render('checkpoint', facts)}"
            files["README.md"].write_text(card, encoding="utf-8")
            with hub_errors(f"The checkpoint of step {facts['step']} could not be uploaded", "Training goes on."):
                api = HfApi()
                with_retries(lambda: api.create_branch(self.repo_id, branch=BRANCH, exist_ok=True))
                stale = UPLOAD_PATTERNS if self.keep and facts["folder"] not in (None, "last-checkpoint") else ("*",)
                commit_files(api, self.repo_id, files, f"Training, step {facts['step']}", revision=BRANCH, stale=stale)
            self.keep = True
        except MedtlError as error:
            logger.warning("%s", error)
        finally:
            shutil.rmtree(copy)


def link(source: str, target: str) -> None:
    """Give a file a second name; copy it where the disk can't."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
