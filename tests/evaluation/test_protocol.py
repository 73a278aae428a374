"""How numbers say how they were made, and where two must not be set side by side."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lumitok.errors import LumitokError
from lumitok.evaluation.protocol import PictureSet, Protocol, common_lines, hash_names, in_words

DATA = PictureSet("photos", 100, "a" * 64)
FULL = Protocol(
    data=DATA,
    reference=PictureSet("val", 50_000, "b" * 64),
    size=256,
    preparation="ADM's centre crop",
    method="FID",
    extractor="inception",
    weights="c" * 64,
    seed=3,
)


def test_it_says_all_that_applies_and_nothing_else() -> None:
    said = dict(FULL.lines())
    assert said["data"] == "photos, 100 pictures, list aaaaaaaaaaaa"
    assert said["reference"].startswith("val, 50,000 pictures")
    assert said["size"] == "256 px"
    assert said["weights"] == "c" * 12
    assert "guidance" not in said
    assert FULL.describe(without=replace(FULL, method="sFID")) == "method: FID"
    assert FULL.describe(without=[("seed", "3")]) == FULL.describe().removesuffix("; seed: 3")


def test_what_several_share_leaves_out_the_pictures_where_they_differ() -> None:
    other = replace(FULL, data=replace(DATA, files="d" * 64), method=None)
    shared = common_lines([FULL, other, replace(FULL, seed=None)])
    assert [name for name, _ in shared] == ["reference", "size", "preparation", "extractor", "weights"]
    assert in_words(shared).startswith("reference: val, 50,000 pictures, list bbbbbbbbbbbb; size: 256 px; ")
    assert common_lines([]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": replace(DATA, count=99)}, "data: 100 pictures, not 99"),
        ({"data": replace(DATA, files="d" * 64)}, "data: other pictures (photos, not photos)"),
        ({"reference": None}, "reference: "),
        ({"size": 128}, "size: 256, not 128"),
        ({"weights": "d" * 64}, "weights: cccccccccccc, not dddddddddddd"),
        ({"guidance": "2.0"}, "guidance: none, not 2.0"),
    ],
)
def test_what_makes_two_numbers_unlike(change: dict[str, object], said: str) -> None:
    (reason,) = FULL.unlike(replace(FULL, **change))  # type: ignore[arg-type]
    assert reason.startswith(said)


def test_seed_and_folder_name_make_no_difference() -> None:
    assert FULL.unlike(replace(FULL, seed=4, data=replace(DATA, name="copy"))) == []


def test_json_gives_it_back_and_refuses_what_is_none() -> None:
    values = json.loads(json.dumps(FULL.to_json()))
    assert Protocol.from_json(values) == FULL
    with pytest.raises(LumitokError, match="a protocol has no 'sizes'; did you mean 'size'"):
        Protocol.from_json({**values, "sizes": 3})
    with pytest.raises(LumitokError, match="no protocol of a number"):
        Protocol.from_json({"size": 3})


def test_the_hash_of_a_list_is_of_the_names_and_not_of_their_order() -> None:
    assert hash_names(["a", "b"]) == hash_names(["b", "a"])
    assert hash_names(["a", "b"]) != hash_names(["ab"])
    assert hash_names(["a\udcff"]) != hash_names(["a"])  # A name that is no text.
