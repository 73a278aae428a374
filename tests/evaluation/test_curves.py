"""Histories read record by record, and drawings read as the text they are."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lumitok.errors import LumitokError
from lumitok.evaluation.curves import COLORS, Series, plot_png, plot_svg, read_history, series, value_names

RECORDS = [
    {"step": 1, "images": 8, "kind": "train", "values": {"loss/l1": 0.5, "loss/kl": 10.0}},
    {"step": 2, "images": 16, "kind": "train", "values": {"loss/l1": 0.4}},
    {"step": 2, "images": 16, "kind": "validation", "values": {"psnr": 20.0}},
    {"step": 3, "images": 24, "kind": "train", "values": {"loss/l1": None}},
    {"step": 2, "images": 16, "kind": "train", "values": {"loss/l1": 0.3}},
]
LINE = Series("loss/l1", [0, 10, 20, 30], [1.0, 0.1, 0.03, 0.0123])


def written(folder: Path, text: str) -> Path:
    path = folder / "history.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_history_is_read_and_the_line_being_written_is_left(tmp_path: Path) -> None:
    text = "".join(json.dumps(record) + "\n" for record in RECORDS)
    assert read_history(written(tmp_path, text + '{"step": 4, "val')) == RECORDS


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(LumitokError, match="line 2: not JSON"):
        read_history(written(tmp_path, '{"step": 1, "values": {}}\n{"step":\n'))
    with pytest.raises(LumitokError, match="line 1: a record needs"):
        read_history(written(tmp_path, '{"step": 1}\n'))
    with pytest.raises(LumitokError, match="no history"):
        read_history(tmp_path / "none.jsonl")


def test_a_series_is_in_order_and_the_later_record_counts() -> None:
    line = series(RECORDS, "loss/l1")
    assert list(line.steps) == [1, 2, 3]
    assert list(line.values[:2]) == [0.5, 0.3]
    assert math.isnan(line.values[2])
    assert list(series(RECORDS, "psnr", kind="validation", against="images").steps) == [16]
    assert value_names(RECORDS, "train") == ["loss/l1", "loss/kl"]


def test_a_wrong_name_is_put_right() -> None:
    with pytest.raises(LumitokError, match="did you mean 'loss/kl'"):
        series(RECORDS, "loss_kl")
    with pytest.raises(LumitokError, match="no record"):
        series(RECORDS, "psnr", kind="train")


def texts(svg: str) -> list[str]:
    return [
        element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")
    ]


def test_the_drawing_follows_the_page_and_holds_nothing_active() -> None:
    svg = plot_svg([LINE, Series("other", [0, 30], [2.0, 1.0])], title="loss/l1", unit="dB")
    assert "currentColor" in svg
    for name in ("--series-1", "--series-2", "--quiet", "--rule"):
        assert f"var({name}, #" in svg
    assert not re.search(r"(?<!, )#[0-9a-f]{6}\b", svg)  # Every colour is a variable with its fallback.
    assert "<style" not in svg
    assert "<!DOCTYPE" not in svg
    assert "<metadata" not in svg
    assert {"loss/l1", "other", "dB", "step", "0.0123", "1.00"} <= set(texts(svg))


def test_the_same_lines_give_the_same_text() -> None:
    assert plot_svg([LINE], title="a") == plot_svg([LINE], title="a")
    assert plot_svg([LINE], title="a") != plot_svg([LINE], title="a", log=True)


def test_the_logarithmic_axis_has_round_ticks_and_drops_what_has_no_logarithm() -> None:
    assert {"1", "0.1"} <= set(texts(plot_svg([LINE], log=True)))
    svg = plot_svg([Series("x", [0, 1, 2], [0.0, -1.0, math.nan])], log=True)
    assert "x" in texts(svg)


@pytest.mark.parametrize("span", [(0.9, 1.1), (0.02, 0.5), (1e-6, 1e5), (3.0, 3.001)])
def test_every_logarithmic_axis_has_a_few_ticks(span: tuple[float, float]) -> None:
    labels = texts(plot_svg([Series("x", [0, 1], list(span))], log=True))
    heights = [label for label in labels if re.fullmatch(r"[\d.e-]+", label)][:-1]
    assert len(heights) >= 3


def end_height(values: list[float], *, log: bool = False) -> tuple[float, float]:
    """Heights of the dot at a line's end and of the number beside it, in the drawing's units."""
    root = ElementTree.fromstring(plot_svg([Series("x", list(range(len(values))), values)], log=log))
    dot = next(
        e for e in root.iter() if e.tag.endswith("}use") and e.get("x") and "series-1" in e.get("style", "")
    )
    number = next(e for e in root.iter() if e.tag.endswith("}text") and "series-1" in e.get("style", ""))
    return float(dot.get("y", "")), float(number.get("y", ""))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[5.0, 1.0, 2.0], [1.0, 3.0, 9.0]])
def test_the_last_value_stands_beside_the_lines_end(values: list[float], log: bool) -> None:
    dot, number = end_height(values, log=log)
    assert abs(dot - number) < 6


def test_smoothing_ends_at_the_mean_of_the_last_points() -> None:
    line = Series("x", [0, 1, 2, 3], [9.0, 1.0, math.nan, 2.0])
    assert "1.50" in texts(plot_svg([line], smooth=3))
    assert "2.00" in texts(plot_svg([line]))


def test_png_in_both_schemes() -> None:
    corners = {}
    for scheme in COLORS:
        with Image.open(io.BytesIO(plot_png([LINE], title="loss/l1", scheme=scheme))) as image:
            assert image.size == (1056, 636)
            corners[scheme] = np.asarray(image.convert("L"))[0, 0]
    assert corners["light"] == 255
    assert corners["dark"] < 40
    with pytest.raises(LumitokError, match="unknown scheme"):
        plot_png([LINE], scheme="night")


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(LumitokError, match="at least one line"):
        plot_svg([])
