"""What a run prints before and after training."""

import re

from hf_medtl import Recipe
from hf_medtl.runs import console, preflight
from tests.support.commands import options


def test_plan_counts_the_parameters_of_small_models(phantoms, tiny_checkpoint, tmp_path, capsys):
    recipe = Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run"))
    plan = preflight.check(recipe)
    console.show_plan(recipe, plan)
    assert f"ViTForImageClassification, {plan.model.num_parameters():,} parameters, from" in capsys.readouterr().out


def test_end_of_a_run_shows_commands_and_in_a_notebook_code(finished_run, results, monkeypatch, capsys):
    console.show_results(finished_run, results)
    assert re.search(r"hf-medtl predict \S+finished IMAGE\n  python -c", capsys.readouterr().out)
    monkeypatch.setattr(console, "in_notebook", lambda: True)
    console.show_results(finished_run, results)
    output = capsys.readouterr().out
    code = f"  from hf_medtl import Predictor\n  Predictor.from_pretrained({str(finished_run)!r}).predict(['IMAGE'])\n"
    assert code in output
    assert "hf-medtl predict" not in output
