"""What a tokenizer's folder says of where it comes from: the record of its training, and its card."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter

from lumitok import Tokenizer
from lumitok.config import ModelConfig
from lumitok.errors import LumitokError
from lumitok.tokenizers import build_tokenizer
from lumitok.tokenizers.card import CARD, MARK, model_card
from lumitok.tokenizers.provenance import PROVENANCE, Measurement, Provenance
from tests.tokenizers.test_sizes import KINDS

TRAINED = Provenance(
    recipe="vfm-vae/small128",
    stages=["strong", "weak"],
    started_from="first-run",
    data="photos.zip",
    pictures=1234,
    left_out={"short side under 256 px": 5},
    step=600,
    images=9600,
    held_out={"photos.zip": 64},
    measured=Measurement(values={"psnr": 21.456, "ssim": 0.7}, protocol="Rounded to 8 bits.", step=590),
    lumitok="0.1.0",
)


@pytest.fixture
def build(tiny_recipe: dict[str, Any]) -> Callable[[str], Tokenizer]:
    def built(kind: str) -> Tokenizer:
        changes = KINDS[kind]
        own = {"image_size": 32, "latent_channels": 4}
        config = (own if "type" in changes else tiny_recipe["model"]) | changes
        return build_tokenizer(TypeAdapter(ModelConfig).validate_python(config)).eval()

    return built


def front(card: str) -> dict[str, Any]:
    """The YAML before a card."""
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def named(tokenizer: Tokenizer, **changes: Any) -> Tokenizer:
    """The tokenizer as if its encoder were another; only the card looks at this."""
    encoder = tokenizer.settings.encoder.model_copy(update={"weights": None, **changes})
    tokenizer.settings = tokenizer.settings.model_copy(update={"encoder": encoder})
    return tokenizer


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "," not in kind])
def test_a_card_is_written_for_every_kind(
    build: Callable[[str], Tokenizer], kind: str, tmp_path: Path
) -> None:
    tokenizer = build(kind)
    tokenizer.save_pretrained(tmp_path)
    card = (tmp_path / CARD).read_text()
    assert front(card)["library_name"] == "lumitok"
    assert tokenizer.settings.type in front(card)["tags"]
    assert "license" not in front(card), "nobody knows the licence of random weights"
    assert "It is not known what it was trained on." in card
    assert "None were measured" in card
    assert "carries no latent statistics" in card
    assert "whiten" not in card
    assert f"{tokenizer.settings.latent_channels} channels of 2 x 2 for 32 x 32 px" in card
    assert not (tmp_path / PROVENANCE).exists()


def test_what_trained_it_survives_saving_and_loading(
    build: Callable[[str], Tokenizer], tmp_path: Path
) -> None:
    tokenizer = build("ldm")
    tokenizer.provenance = TRAINED
    tokenizer.set_latent_statistics(torch.arange(4.0), torch.arange(4.0) + 0.5, 321)
    tokenizer.save_pretrained(tmp_path / "one")
    loaded = Tokenizer.from_pretrained(tmp_path / "one")
    assert loaded.provenance == TRAINED
    loaded.save_pretrained(tmp_path / "two")
    for name in (PROVENANCE, CARD, "config.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    card = (tmp_path / "two" / CARD).read_text()
    for said in (
        "# ldm: vfm-vae/small128",
        "`strong`, `weak`",
        "the weights of `first-run`",
        "`photos.zip`, 1,234 of them",
        "images seen: 9,600",
        "Left out: 5, short side under 256 px",
        "| psnr | 21.46 |",
        "At step 590, on 64 held-out pictures of `photos.zip`. Rounded to 8 bits.",
        "over 321 pictures",
        "| 3 | 3.0000 | 3.5000 |",
        "latent_spec.whiten(z)",
    ):
        assert said in card, said
    loaded.provenance = None
    loaded.save_pretrained(tmp_path / "two")
    assert not (tmp_path / "two" / PROVENANCE).exists(), "another's record is not left behind"


@pytest.mark.parametrize(
    ("encoder", "wanted"),
    [
        (
            {"name": "siglip2-large-patch16-256"},
            {"license": "apache-2.0", "base_model": "timm/vit_large_patch16_siglip_256.v2_webli"},
        ),
        ({"name": "mae-large"}, {"license": "cc-by-nc-4.0"}),
        ({"name": "dinov3-base"}, {"license": "other", "license_name": "dinov3-license"}),
        ({"name": "efficientnet-lite0"}, {"license": "apache-2.0"}),
        ({"name": "timm:vit_tiny_patch16_224", "weights": "some/where/on/disk.pth"}, {}),
    ],
)
def test_the_licence_is_the_encoders(
    build: Callable[[str], Tokenizer], encoder: dict[str, Any], wanted: dict[str, str]
) -> None:
    card = model_card(named(build("frozen-ldm"), **encoder))
    assert wanted.items() <= front(card).items()
    assert encoder["name"].removeprefix("timm:") in card
    assert "some/where" not in card
    if "license_name" in wanted or "license" in wanted:
        assert f"Licence of its weights: {wanted.get('license_name', wanted.get('license'))}." in card
    assert ("base_model" in front(card)) == (encoder["name"] != "efficientnet-lite0")


def test_a_card_written_by_hand_is_left_alone(build: Callable[[str], Tokenizer], tmp_path: Path) -> None:
    tokenizer = build("ldm")
    tokenizer.save_pretrained(tmp_path)
    ours = (tmp_path / CARD).read_text()
    tokenizer.provenance = TRAINED
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() != ours
    (tmp_path / CARD).write_text(ours.replace(MARK, ""))
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() == ours.replace(MARK, "")


@pytest.mark.parametrize("text", ["{", "[]", '{"recipe": 3}'])
def test_a_damaged_record_is_named(build: Callable[[str], Tokenizer], tmp_path: Path, text: str) -> None:
    build("ldm").save_pretrained(tmp_path)
    (tmp_path / PROVENANCE).write_text(text)
    with pytest.raises(LumitokError, match=r"training\.json is damaged"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_later_version_s_record_opens(build: Callable[[str], Tokenizer], tmp_path: Path) -> None:
    build("ldm").save_pretrained(tmp_path)
    (tmp_path / PROVENANCE).write_text(json.dumps(TRAINED.model_dump() | {"more": 1}))
    assert Tokenizer.from_pretrained(tmp_path).provenance == TRAINED


def test_missing_statistics_are_told_of_once_a_folder(
    build: Callable[[str], Tokenizer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = build("ldm")
    tokenizer.save_pretrained(tmp_path / "without")
    tokenizer.set_latent_statistics(torch.zeros(4), torch.ones(4), 2)
    tokenizer.save_pretrained(tmp_path / "with")
    with caplog.at_level(logging.WARNING, "lumitok"):
        for name in ("with", "without", "without"):
            Tokenizer.from_pretrained(tmp_path / name)
    (record,) = caplog.records
    assert "without carries no latent statistics" in record.getMessage()
    with pytest.raises(LumitokError, match="`lumitok statistics CHECKPOINT PICTURES`"):
        Tokenizer.from_pretrained(tmp_path / "without").latent_spec.require_statistics()
    Tokenizer.from_pretrained(tmp_path / "with").latent_spec.require_statistics()
