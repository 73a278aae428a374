"""What a run writes of itself into its tokenizer's folder."""

from __future__ import annotations

import json
from pathlib import Path

from lumitok import Tokenizer, __version__
from lumitok.config import Recipe
from lumitok.evaluation.curves import read_history
from lumitok.training import train
from tests.training.compare import changed, stopped_at


def test_a_run_says_what_it_did_and_names_no_path(recipe: Recipe, tmp_path: Path) -> None:
    recipe = changed(recipe, name="my/recipe", stages__0__losses={"l1": 1.0}, discriminator=None)
    run = train(recipe)
    measured = [r for r in read_history(run / "history.jsonl") if r["kind"] == "validation"]
    final = Tokenizer.from_pretrained(run).provenance
    assert final is not None
    assert (final.recipe, final.stages, final.started_from) == ("my/recipe", ["only"], "")
    assert (final.data, final.pictures, final.step, final.images) == ("pictures", 8, 6, 24)
    assert final.held_out == {"pictures": 4}
    assert final.lumitok == __version__
    assert final.measured is not None
    assert (final.measured.step, final.measured.values) == (6, measured[-1]["values"])
    card = (run / "tokenizer" / "README.md").read_text()
    assert f"| psnr | {measured[-1]['values']['psnr']:.4g} |" in card
    assert "At step 6, on 4 held-out pictures of `pictures`." in card
    for text in (card, (run / "tokenizer" / "training.json").read_text()):
        assert str(tmp_path) not in text
        assert "/" not in text.replace("my/recipe", "").replace("</", "").split("## Use")[-1].split("```")[0]
    # A checkpoint tells of what was measured before it, and a run taken up again ends with the same record.
    early = run / "checkpoints" / "step-00000004"
    before = Tokenizer.from_pretrained(early).provenance
    assert before is not None
    assert before.measured is not None
    assert (before.step, before.measured.step) == (4, 3)
    again = stopped_at(run, 4, tmp_path / "again")
    train(changed(recipe, out=str(again)), resume=True)
    theirs = json.loads((again / "tokenizer" / "training.json").read_text())
    assert theirs == json.loads((run / "tokenizer" / "training.json").read_text())
    # A run that begins with this one says so, by name.
    after = train(changed(recipe, out=str(tmp_path / "after"), init=str(run)))
    origin = Tokenizer.from_pretrained(after).provenance
    assert origin is not None
    assert origin.started_from == "run"
    assert origin.images == 48
