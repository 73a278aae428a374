"""The page read back with an HTML parser: balanced, escaped, alone and the same every time."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lumitok.errors import LumitokError
from lumitok.evaluation.curves import Series, plot_svg
from lumitok.evaluation.report import Figure, Report

VOID = {"meta", "link", "img", "input", "br", "hr"}
EVIL = "<script>alert('x')</script>&\"quoted\""
PICTURE = Image.new("RGB", (8, 4), (10, 20, 30))


class Page(HTMLParser):
    """Tags with their attributes and the text inside, with a check that what opens closes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> outside a drawing"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def inside(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def drawing() -> str:
    return plot_svg([Series("loss", [0, 1, 2], [3.0, 2.0, 1.0])], title="loss")


def full(text: str = "words") -> Report:
    report = Report(text, text, footer=text)
    report.cards([(text, 22.99, text, text), ("count", 1234567, "", "")]).facts({text: text, "seed": 42})
    report.section(text, f"{text}\n\n{text}").figure(PICTURE, text).figure(drawing(), text)
    report.figures([Figure(drawing(), text), Figure(PICTURE, text, pixelated=True, width=64)])
    report.figures([Figure(PICTURE), Figure(PICTURE)], columns=2)
    report.section(text).table([text, "b"], [[text, 1.5], ["y", None]], text, text, best={"b": "high"})
    report.comparison([text, "z"], [(text, [Figure(PICTURE, text), None])], text)
    report.strip([PICTURE], text)
    return report.code(text, title=text).code(text, title=text, folded=True)


def test_the_page_is_balanced_and_every_identifier_is_used_once() -> None:
    page = Page(full().html())
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) > 4
    assert len(set(names)) == len(names)
    links = [str(a["href"]) for a in page.of("a")]
    assert links == ["#words", "#words-2"]
    assert {link[1:] for link in links} <= set(names)


def test_references_inside_drawings_point_into_the_same_drawing() -> None:
    html = full().html()
    names = set(re.findall(r'\sid="([^"]+)"', html))
    references = re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', html)
    assert references
    assert {one or other for one, other in references} <= names


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = Page(full().html())
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base"}
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href", "poster", "srcset"):
                assert str(value).startswith(("#", "data:image/png;base64,"))
            assert "url(http" not in str(value)
    style = "".join(page.inside("style"))
    assert "@import" not in style
    assert "url(" not in style
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_text_is_escaped_everywhere() -> None:
    plain, evil = Page(full().html()), Page(full(EVIL).html())
    assert "<script" not in full(EVIL).html()
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in evil.tags]
    assert [sorted(a) for _, a in plain.tags] == [sorted(a) for _, a in evil.tags]
    words = sum(text.count("words") for _, text in plain.texts if text != "lumitok")
    assert sum(text.count(EVIL) for _, text in evil.texts) == words - sum(
        t == "words" for t in plain.inside("text")
    )


def test_the_same_calls_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = (full().write(tmp_path / name / "report.html") for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()
    assert one.read_text(encoding="utf-8") == full().html()


def test_pictures_come_back_pixel_for_pixel_with_their_words() -> None:
    picture = Image.effect_noise((9, 7), 60).convert("RGB")
    page = Page(Report("t").figure(picture, "A caption", pixelated=True).html())
    (image,) = page.of("img")
    assert (image["width"], image["height"], image["alt"]) == ("9", "7", "A caption")
    assert (image["loading"], image["class"]) == ("lazy", "pixelated")
    data = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.tobytes() == picture.tobytes()


def test_a_png_goes_in_as_it_is_and_nothing_else_goes_in(tmp_path: Path) -> None:
    out = io.BytesIO()
    PICTURE.save(out, format="PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(out.getvalue())
    encoded = base64.b64encode(out.getvalue()).decode()
    assert encoded in Report("t").figure(out.getvalue()).html()
    assert encoded in Report("t").figure(path).html()
    jpeg = io.BytesIO()
    PICTURE.save(jpeg, format="JPEG")
    with pytest.raises(LumitokError, match="is a PNG"):
        Report("t").figure(jpeg.getvalue())
    with pytest.raises(LumitokError, match="no picture"):
        Report("t").figure(tmp_path / "none.png")


@pytest.mark.parametrize(
    "inside",
    [
        "<script>1</script>",
        '<rect onclick="x"/>',
        '<image href="https://example.org/x.png"/>',
        "<style>*{}</style>",
        '<a href="#x"/>',
    ],
)
def test_an_active_drawing_is_refused(inside: str) -> None:
    with pytest.raises(LumitokError, match="plain drawings only"):
        Report("t").figure(f'<svg xmlns="http://www.w3.org/2000/svg">{inside}</svg>')


def test_text_that_is_no_drawing_is_refused() -> None:
    with pytest.raises(LumitokError, match="text of an SVG"):
        Report("t").figure("picture.png")


def cells(
    columns: list[str], rows: list[list[str | int | float | None]], **options: object
) -> list[list[str]]:
    html = Report("t").table(columns, rows, "c", "p", **options).html()  # type: ignore[arg-type]
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    return [
        re.findall(r"<t[dh]([^>]*>[^<]*)", row.replace('<span class="none">', ""))
        for row in body.split("</tr>")[:-1]
    ]


def test_numbers_are_rounded_alike_down_a_column() -> None:
    rows = cells(
        ["run", "psnr", "l1", "steps", "few"],
        [["a", 22.9912, 0.041234, 160000, 0.5], ["b", 9.1, -0.002, 5, 0.25]],
    )
    assert [cell.partition(">")[2] for cell in rows[0]] == ["a", "22.99", "0.04123", "160\u202f000", "0.50"]
    assert [cell.partition(">")[2] for cell in rows[1]] == ["b", "9.10", "\u22120.00200", "5", "0.25"]


def test_the_best_value_is_marked_by_its_direction() -> None:
    rows = cells(
        ["run", "psnr", "l1"],
        [["a", 20.0, 0.1], ["b", 22.0, 0.3], ["c", None, 0.2]],
        best={"psnr": "high", "l1": "low"},
    )
    marked = [[cell.partition(">")[2] for cell in row if "best" in cell] for row in rows]
    assert marked == [["0.1"], ["22"], []]


def test_columns_of_numbers_stand_right_and_words_left() -> None:
    rows = cells(["run", "latent", "psnr"], [["a", "16x16", None], ["b", "8x8", 2.0]])
    assert [["number" in cell for cell in row] for row in rows] == [[False, False, True]] * 2


def test_a_table_without_a_protocol_or_with_a_wrong_row_is_refused() -> None:
    with pytest.raises(LumitokError, match="no protocol"):
        Report("t").table(["a"], [[1.0]], "c", " ")
    with pytest.raises(LumitokError, match="2 columns, a row has 1"):
        Report("t").table(["a", "b"], [[1.0]], "c", "p")
    with pytest.raises(LumitokError, match="no column 'x'"):
        Report("t").table(["a"], [[1.0]], "c", "p", best={"x": "low"})
    with pytest.raises(LumitokError, match="row 'r' has 1 pictures"):
        Report("t").comparison(["a", "b"], [("r", [PICTURE])])


def test_the_protocol_follows_its_table() -> None:
    html = Report("t").table(["a"], [[1.0]], "c", "8 pictures, seed 42").html()
    assert html.index("</table>") < html.index("8 pictures, seed 42")


def test_what_is_wide_scrolls_by_itself_and_can_be_reached() -> None:
    page = Page(full().html())
    regions = [a for a in page.of("div") if a.get("class") == "scroll"]
    assert len(regions) == 4
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)


def test_both_schemes_are_in_the_page() -> None:
    style = "".join(Page(Report("t").html()).inside("style"))
    assert "prefers-color-scheme: dark" in style
    assert "pixelated" in style
