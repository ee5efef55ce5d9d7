"""Lines of the log for each epoch."""

import logging
import re

from transformers import PrinterCallback, ProgressCallback

from hf_medtl.training.epoch_log import BarCallback


def test_an_epoch_is_one_readable_line(make_trainer, caplog, capsys):
    caplog.set_level(logging.INFO)
    trainer = make_trainer(num_train_epochs=2, metric_for_best_model="brier", logging_steps=1)
    trainer.train()
    lines = [message for message in caplog.messages if "/2: " in message]
    pattern = (
        r"Epoch {}/2: training loss 0\.\d+, validation loss 0\.\d+, ROC AUC [01]\.\d\d\d, "
        r"Brier score \(lower is better\) 0\.\d\d\d, learning rate [1-9][\d.e-]+, \d+ s"
    )
    assert len(lines) == 2
    assert all(re.fullmatch(pattern.format(epoch), line) for epoch, line in enumerate(lines, 1)), lines
    assert "eval_loss" not in capsys.readouterr().out


def test_an_epoch_without_evaluation_is_a_line_too(make_trainer, caplog):
    caplog.set_level(logging.INFO)
    more = {"eval_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": 0}
    make_trainer(num_train_epochs=1, logging_steps=1, **more).train()
    assert re.fullmatch(r"Epoch 1/1: training loss 0\.\d+, learning rate [\d.e+-]+, \d+ s", caplog.messages[-1])


def test_bars_are_for_terminals(make_trainer, monkeypatch):
    kinds = {type(callback) for callback in make_trainer(disable_tqdm=None).callback_handler.callbacks}
    assert not kinds & {PrinterCallback, ProgressCallback, BarCallback}
    monkeypatch.setattr("hf_medtl.training.recipe.shows_bars", lambda: True)
    kinds = {type(callback) for callback in make_trainer(disable_tqdm=None).callback_handler.callbacks}
    assert BarCallback in kinds
    assert not kinds & {PrinterCallback, ProgressCallback}
