"""The pieces of a report as HTML: pictures, drawings, tables, numbers. Every text is escaped here."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from PIL import Image

from lumitok.errors import LumitokError

Source = Image.Image | bytes | str | Path
"""A PIL image, the bytes of a PNG, the text of an SVG, or the path of a PNG file."""

Value = str | int | float | None
"""A cell: floats are rounded for reading, ``None`` shows as a dash."""

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Figure:
    """A picture or plot with its caption, for :meth:`Report.figures`."""

    source: Source
    caption: str = ""
    alt: str = ""
    """What a reader who cannot see it is told; empty: the caption."""
    pixelated: bool = False
    """Whether its pixels stay sharp squares where it is shown larger."""
    width: int | None = None
    """Width in CSS pixels at which it is shown; ``None``: its own, or that of its column."""


def caption_markup(text: str) -> str:
    """A caption, or nothing."""
    return f"<figcaption>{escape(text)}</figcaption>" if text else ""


def cell_markup(picture: Source | Figure | None, name: str, *, first: bool = False) -> str:
    """One picture of a comparison or a strip, with its note under it."""
    kind = "cell first" if first else "cell"
    if picture is None:
        return f'<div class="{kind}"></div>'
    figure = picture if isinstance(picture, Figure) else Figure(picture)
    note = f'<div class="note">{escape(figure.caption)}</div>' if figure.caption else ""
    alt = figure.alt or f"{name}, {figure.caption}".strip(", ")
    return f'<div class="{kind}">{image_markup(figure, alt)}{note}</div>'


def image_markup(figure: Figure, alt: str) -> str:
    """An embedded picture that fills the window when pressed."""
    data, (width, height) = _png(figure.source)
    style = f' style="width:{figure.width}px"' if figure.width else ""
    kind = ' class="pixelated"' if figure.pixelated else ""
    return (
        f'<label class="zoom"{style}><input type="checkbox" aria-label="Enlarge">'
        f'<img{kind}{" style=width:100%" if figure.width else ""} width="{width}" height="{height}" '
        f'loading="lazy" decoding="async" alt="{escape(alt)}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}"></label>'
    )


def _png(source: Source) -> tuple[bytes, tuple[int, int]]:
    """Return PNG bytes and (width, height) in pixels."""
    if isinstance(source, Image.Image):
        out = io.BytesIO()
        source.convert("RGB").save(out, format="PNG", optimize=True)
        return out.getvalue(), source.size
    if isinstance(source, str):
        raise LumitokError("a drawing (SVG text) has no place in a comparison; use Report.figures")
    if isinstance(source, Path) and not source.is_file():
        raise LumitokError(f"there is no picture at '{source}'")
    data = source.read_bytes() if isinstance(source, Path) else source
    if not data.startswith(_PNG):
        raise LumitokError(
            "a picture in a report is a PNG; give a PIL image, or the bytes or path of a PNG file"
        )
    with Image.open(io.BytesIO(data)) as image:
        return data, image.size


def drawing_markup(svg: str, alt: str, prefix: str) -> str:
    """An SVG as part of the page: checked for anything active, its identifiers made the page's own."""
    start = svg.find("<svg")
    text = svg[start:] if start >= 0 else ""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise LumitokError(f"expected the text of an SVG, got something else ({error})") from error
    for element in root.iter():
        name = str(element.tag).rpartition("}")[2].lower()
        for key, value in element.attrib.items():
            key = key.rpartition("}")[2].lower()
            if key.startswith("on") or (key in ("href", "src") and not value.startswith("#")):
                raise LumitokError(
                    f"the SVG has the attribute {key}='{value}'; a report holds plain drawings only"
                )
        if name in ("script", "style", "foreignobject", "iframe", "a"):
            raise LumitokError(f"the SVG has an element <{name}>; a report holds plain drawings only")
    text = re.sub(r'(\sid=")', rf"\g<1>{prefix}", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)


def scrolling(inside: str, name: str) -> str:
    """A region that scrolls sideways; the keyboard can reach it."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{inside}</div>'


def data_table(
    columns: Sequence[str], rows: Sequence[Sequence[Value]], best: Mapping[str, Literal["high", "low"]]
) -> str:
    """A table whose first column names the rows; columns of numbers stand right, their best value bold."""
    head, cells = "", [""] * len(rows)
    for index, name in enumerate(columns):
        values = [row[index] for row in rows]
        numbers = all(value is None or _is_number(value) for value in values) and any(map(_is_number, values))
        decimals, finest = decimals_of(values), _best_value(values, best.get(name))
        number = ' class="number"' if numbers else ""
        head += f'<th scope="col"{number}>{escape(name)}</th>'
        for place, value in enumerate(values):
            kind = ' class="number best"' if finest is not None and value == finest else number
            tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
            cells[place] += f"<{tag}{scope}{kind}>{shown(value, decimals)}</{tag}>"
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def decimals_of(values: Sequence[Value]) -> int:
    """Decimals for a column: four digits of its largest number, fewer where no value needs them."""
    numbers = [v for v in values if isinstance(v, float) and math.isfinite(v) and v != 0]
    if not numbers:
        return 0
    most = min(6, max(0, 3 - math.floor(math.log10(max(abs(v) for v in numbers)))))
    return max(len(f"{v:.{most}f}".rstrip("0").partition(".")[2]) for v in numbers)


def _best_value(values: Sequence[Value], which: Literal["high", "low"] | None) -> Value:
    numbers = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if which is None or len(numbers) < 2:
        return None
    return max(numbers) if which == "high" else min(numbers)


def shown(value: Value, decimals: int | None = None) -> str:
    """A value as escaped text, numbers with a true minus sign."""
    if value is None:
        return '<span class="none">&ndash;</span>'
    if isinstance(value, str | bool):
        return escape(str(value))
    if isinstance(value, int):
        text = f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    elif not math.isfinite(value):
        text = str(value)
    else:
        decimals = decimals_of([value]) if decimals is None else decimals
        text = f"{value:.{decimals}f}"
        if value and float(text) == 0:
            text = f"{value:.2e}"
    return text.replace("-", "\u2212")
