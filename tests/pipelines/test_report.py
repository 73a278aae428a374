"""Runs made by hand, and the page that is made of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lumitok.config import LossConfig, Recipe, save_recipe
from lumitok.errors import LumitokError
from lumitok.evaluation.protocol import PictureSet, Protocol
from lumitok.evaluation.results import Number, Results, default_path
from lumitok.pipelines import report_album
from lumitok.pipelines.report import compose, gather, shown_recipe, write_report
from lumitok.pipelines.report_album import error_of, make_album
from lumitok.pipelines.report_curves import TITLES, add_curves, split_name
from lumitok.pipelines.report_numbers import RunsReport, group_results
from lumitok.pipelines.report_pictures import three_moments
from lumitok.pipelines.report_runs import Run, open_runs, unique_names
from lumitok.tokenizers import Tokenizer, build_tokenizer

EVIL = "<b>&'\""
PICTURES = PictureSet("val", 500, "f" * 64)
FEWER = PictureSet("val", 100, "e" * 64)
BASE = Protocol(data=PICTURES, size=32, method="each image by itself")


@pytest.fixture(autouse=True)
def _on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_album, "default_device", lambda: torch.device("cpu"))


def history(psnr: float = 20.0) -> list[dict[str, Any]]:
    values = {"l1": 0.1, "vf": 0.5, "generator_gradient": 1.0, "images_per_second": 10.0}
    lines = [
        {"step": step, "images": 4 * step, "stage": "only", "kind": "train", "values": values}
        for step in (1, 2)
    ]
    measured = {"psnr": psnr, "count": 4.0, "feature-distance/tiny": 0.2}
    return [*lines, {"step": 2, "images": 8, "stage": "only", "kind": "validation", "values": measured}]


def make_run(folder: Path, recipe: dict[str, Any] | None = None, *, side: int = 32, error: int = 10) -> Path:
    """A run as `lumitok train` leaves it before its first checkpoint: two grey pictures, three moments."""
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history()))
    for name, shift in (("input", 0), ("step-00000001", 40), ("step-00000002", error)):
        (folder / "examples" / name).mkdir(parents=True)
        for index in range(2):
            grey = 100 + index + shift
            Image.new("RGB", (side, side), (grey,) * 3).save(folder / "examples" / name / f"{index}.png")
    if recipe is not None:
        save_recipe(Recipe.model_validate(recipe), folder / "recipe.yaml")
    return folder


def add_tokenizer(run: Path, recipe: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    build_tokenizer(Recipe.model_validate(recipe).model).save_pretrained(run / "tokenizer")
    return run


def result(
    value: float, protocol: Protocol = BASE, name: str = "PSNR", *, better: str = "high", **more: Any
) -> Results:
    kind = more.pop("kind", "reconstruction")
    return Results(kind, "anything", [Number(name, value, protocol, "dB", better)], **more)  # type: ignore[arg-type]


def save(run: Path, results: Results) -> Path:
    results.save(default_path(run, results))
    return run


def run_of(name: str, *results: Results) -> Run:
    stems = [f"{r.kind}-{index}" for index, r in enumerate(results)]
    return Run(name, Path(name), history=history(), results=dict(zip(stems, results, strict=True)))


def table(*runs: Run) -> str:
    groups = group_results(runs)
    assert len(groups) == 1
    return RunsReport("t").results(groups[0]).html()


def row(html: str, name: str) -> str:
    """The cells of a row, marks in brackets, the best between stars."""
    found = re.search(rf'<tr><th scope="row">{name}(.*?)</tr>', html)
    assert found is not None
    text = re.sub(r'<td class="number best">(.*?)</td>', r"|*\1*", found[1]).replace("<td", "|<td")
    return re.sub(r"<[^>]*>", "", re.sub(r"<sup[^>]*>([^<]+)</sup>", r"[\1]", text))


class Page(HTMLParser):
    """Tags with their attributes, checked to close as they open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


# ------------------------------------------------------------------------------------------------
# Numbers and their protocols


def test_numbers_made_alike_stand_in_one_column_and_the_best_is_bold() -> None:
    html = table(run_of("a", result(20.0)), run_of("b", result(22.5)))
    assert (row(html, "a"), row(html, "b")) == ("|20.0", "|*22.5*")
    assert "PSNR, dB \u2191" in html
    assert "data: val, 500 pictures, list ffffffffffff; size: 32 px; method: each image by itself" in html


def test_a_number_made_another_way_is_marked_and_never_the_best() -> None:
    html = table(
        run_of("a", result(29.0, replace(BASE, data=FEWER))),
        run_of("b", result(20.0)),
        run_of("c", result(22.5)),
        run_of("d", result(22.5, replace(BASE, data=FEWER))),
        run_of("e", result(21.0)),
    )
    assert [row(html, n) for n in "abcde"] == ["|29.0[a]", "|20.0", "|*22.5*", "|22.5[a]", "|21.0"]
    assert "<b>a</b> data: 100 pictures, not 500<" in html


def test_the_same_difference_has_the_same_letter_and_another_one_the_next() -> None:
    other = replace(BASE, size=64)
    a = Results("reconstruction", "x", [Number("PSNR", 1.0, other), Number("L1", 0.5, other)])
    plain = Results("reconstruction", "x", [Number("PSNR", 2.0, BASE), Number("L1", 0.6, BASE)])
    b = Results("reconstruction", "x", [Number("PSNR", 3.0, replace(BASE, latent="posterior sample"))])
    html = table(run_of("p", plain), run_of("q", plain), run_of("a", a), run_of("b", b))
    assert row(html, "a") == "|1[a]|0.5[a]"
    assert row(html, "b") == "|3[b]|\u2013".replace("\u2013", "&ndash;")
    assert "<b>a</b> size: 64, not 32<" in html
    assert "<b>b</b> latent: posterior sample, not none<" in html
    assert "<b>c</b>" not in html


def test_two_seeds_are_one_protocol_and_neither_is_said_to_be_of_all() -> None:
    one, other = (result(v, replace(BASE, seed=s)) for v, s in ((1.0, 7), (2.0, 8)))
    assert "seed: 7" in table(run_of("a", one))
    html = table(run_of("a", one), run_of("b", other))
    assert (row(html, "a"), row(html, "b")) == ("|1", "|*2*")
    assert "seed" not in html


def test_what_is_common_is_said_once_and_the_rest_metric_by_metric() -> None:
    numbers = [
        Number("PSNR", 20.0, BASE),
        Number("SSIM", 0.5, replace(BASE, method="gaussian 11")),
        Number("L1", 0.1, BASE),
    ]
    html = table(run_of("a", Results("reconstruction", "x", numbers)))
    assert html.count("500 pictures") == 1
    assert "<b>PSNR, L1.</b> method: each image by itself<" in html
    assert "<b>SSIM.</b> method: gaussian 11<" in html


def test_each_kind_and_set_of_pictures_has_its_table() -> None:
    photos = replace(BASE, data=PictureSet("photos", 500, "a" * 64))
    renamed = replace(BASE, data=replace(PICTURES, name="copy"))
    runs = [
        run_of("a", result(1.0), result(2.0, photos), result(3.0, kind="latents", name="Gini")),
        run_of("b", result(4.0, renamed), result(5.0, kind="latents", name="Gini")),
    ]
    groups = {group.title: [name for _, name, _ in group.rows] for group in group_results(runs)}
    assert groups == {
        "Reconstruction on val": ["a", "b"],
        "Reconstruction on photos": ["a"],
        "Latent space on val": ["a", "b"],
    }


def test_what_each_run_generated_is_no_difference_but_its_reference_is() -> None:
    def generated(name: str, files: str, count: int = 50) -> Results:
        made = Protocol(data=PictureSet(name, count, files * 64), reference=PICTURES)
        return result(5.0 + ord(name), made, "FID", better="low", kind="generation")

    html = table(run_of("a", generated("p", "1")), run_of("b", generated("q", "2")))
    assert row(html, "a").startswith("|*")
    assert "[" not in row(html, "b")
    assert "against val" in html
    assert "list one a run" in html
    html = table(*(run_of(n, generated(n, n, 40 if n == "c" else 50)) for n in "abc"))
    assert row(html, "c").endswith("[a]")


def test_what_was_generated_is_sorted_by_what_any_of_its_numbers_is_held_against() -> None:
    stored = "Frechet; to the statistics stored in ref.npz (0123456789ab)"

    def generated(name: str, *how: dict[str, Any]) -> Results:
        made = Protocol(data=PictureSet(name, 50, name * 64))
        numbers = [Number(f"n{i}", 1.0, replace(made, **changes)) for i, changes in enumerate(how)]
        return Results("generation", name, numbers)

    runs = [
        run_of("a", generated("1", {"method": "IS"}, {"reference": PICTURES})),
        run_of("b", generated("2", {"reference": PICTURES})),
        run_of("c", generated("3", {"method": "IS"}, {"method": stored})),
        run_of("d", generated("4", {"method": stored})),
        run_of("e", generated("5", {"method": stored}, {"reference": PictureSet("ref.npz", 9, "9" * 64)})),
        run_of("f", generated("6", {"method": "IS"})),
    ]
    groups = {group.title: [name for _, name, _ in group.rows] for group in group_results(runs)}
    assert groups == {
        "Generation against val": ["a", "b"],
        "Generation against ref.npz": ["c", "d", "e"],
        "Generation of 6": ["f"],
    }
    with pytest.raises(LumitokError, match="hold no number"):
        group_results([run_of("a", generated("1"))])


def test_two_results_of_one_run_are_two_rows_with_the_names_of_their_files() -> None:
    html = table(run_of("a", result(1.0), result(2.0)))
    assert (row(html, "a, reconstruction-0"), row(html, "a, reconstruction-1")) == ("|1", "|*2*")


def test_what_holds_for_a_whole_row_is_marked_at_its_name() -> None:
    tables = {"warnings": ["few pictures"], "not measured": {"rFID": "no weights"}}
    old = result(20.0, step=1, left_out={"unreadable": 3}, tables=tables)
    html = table(run_of("a", old), run_of("b", result(21.0, step=2)))
    assert (row(html, "a"), row(html, "b")) == ("[*]|20", "|*21*")
    said = (
        "measured at step 1; the run is at step 2; 3 left out: unreadable; few pictures; not measured, with "
        "the reason in the JSON: rFID<"
    )
    assert f"<b>*</b> {said}" in html


def test_notes_and_differences_have_signs_of_their_own() -> None:
    noted = [result(20.0, tables={"warnings": [text]}) for text in ("one", "two")]
    other = result(29.0, replace(BASE, size=64), tables={"warnings": ["two"]})
    html = table(run_of("a", noted[0]), run_of("b", noted[1]), run_of("c", other))
    assert [row(html, n) for n in "abc"] == ["[*]|*20*", "[\u2020]|*20*", "[\u2020]|29[a]"]
    assert html.index("<b>a</b> size") < html.index("<b>*</b> one") < html.index("<b>\u2020</b> two")


def test_numbers_of_other_weights_than_the_runs_are_noted() -> None:
    runs = [
        run_of("a", result(1.0, fingerprint="f" * 64)),
        run_of("b", result(2.0, fingerprint="e" * 64)),
        run_of("c", result(3.0, fingerprint="e" * 64, step=1)),  # Said by its step.
        run_of("d", result(4.0)),
    ]
    (group,) = group_results(runs)
    html = RunsReport("t").results(group, fingerprints=dict.fromkeys("abcd", "f" * 64)).html()
    assert [row(html, name).split("|")[0] for name in "abcd"] == ["", "[*]", "[\u2020]", ""]
    assert "<b>*</b> measured on other weights" in html
    assert html.count("other weights") == 1
    assert "other weights" not in RunsReport("t").results(group).html()


def test_a_run_whose_weights_changed_is_noted_in_its_report(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    run = save(add_tokenizer(make_run(tmp_path / "run", tiny_recipe), tiny_recipe), result(1.0))
    material = gather([run], count=1)
    assert material.album.fingerprints == {}  # Nothing to hold against them.
    save(run, result(1.0, fingerprint="e" * 64))
    material = gather([run], count=1)
    assert material.album.fingerprints == {"run": Tokenizer.from_pretrained(run / "tokenizer").fingerprint()}
    assert "measured on other weights" in Page(compose(material).html()).text


def test_a_spread_stands_beside_its_mean_with_the_same_decimals() -> None:
    number = Number("KID", 0.01234, BASE, spread=0.0005)
    assert row(table(run_of("a", Results("x", "x", [number]))), "a") == "|0.01234 \u00b1 0.00050"


# ------------------------------------------------------------------------------------------------
# Runs


def test_names_are_as_short_as_sets_them_apart() -> None:
    given = ["x/demo/run", "y/demo/run", "other", "y/long/run"]
    assert unique_names([Path(p) for p in given]) == ["x/demo/run", "y/demo/run", "other", "long/run"]


def test_a_folder_named_by_a_dot_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_run(tmp_path / "here"))
    assert open_runs([Path()])[0].name == "here"


def test_the_time_of_a_run_leaves_out_what_another_had_seen(tiny_recipe: dict[str, Any]) -> None:
    lines = [
        {"step": 5, "images": 1020, "kind": "train", "values": {"images_per_second": 2.0}},
        {"step": 10, "images": 1040, "kind": "train", "values": {"images_per_second": 4.0}},
        {"step": 10, "images": 1040, "kind": "validation", "values": {"psnr": 1.0}},
    ]
    recipe = Recipe.model_validate(tiny_recipe)  # Four pictures a step.
    run = Run("a", Path("a"), recipe=recipe, history=lines)
    assert run.training_seconds == pytest.approx(20 / 2 + 20 / 4)
    assert run.images_per_second == 3.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "history.jsonl").write_text("{\n"), r"history\.jsonl, line 1: not JSON"),
        (lambda run: (run / "history.jsonl").write_bytes(b"\xff\n"), r"history\.jsonl is damaged"),
        (
            lambda run: (run / "history.jsonl").write_text('{"step": 3, "values": {}}\n'),
            "the record of step 3 needs 'kind'",
        ),
        (lambda run: save(run, result(1.0)) and spoil_json(run), "does not hold results of lumitok"),
        (lambda run: (run / "examples/input/1.png").write_bytes(b"PNG"), r"1\.png' is damaged"),
        (
            lambda run: Image.new("RGB", (9, 9)).save(run / "examples/input/1.png"),
            "input' differ in size",
        ),
        (lambda run: (run / "recipe.yaml").write_text("stages: 3\n"), r"recipe.*recipe\.yaml"),
        (
            lambda run: (run / "tokenizer").mkdir() or (run / "tokenizer/config.json").write_text("{"),
            r"config\.json is damaged",
        ),
        (lambda run: (run / "history.jsonl").unlink(), "is not a run: it has neither"),
    ],
)
def test_a_damaged_run_is_named_with_its_file(tmp_path: Path, spoil: Any, message: str) -> None:
    run = make_run(tmp_path / "run")
    spoil(run)
    with pytest.raises(LumitokError, match=message):
        gather([run])


def spoil_json(run: Path) -> None:
    default_path(run, result(1.0)).write_text('{"kind": 1}')


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(LumitokError, match="at least one run"):
        gather([])
    with pytest.raises(LumitokError, match="there is no run"):
        gather([tmp_path / "none"])
    with pytest.raises(LumitokError, match="was given twice"):
        gather([run, tmp_path / "run" / ".." / "run"])
    with pytest.raises(LumitokError, match="goes to a file"):
        write_report([run], tmp_path)


# ------------------------------------------------------------------------------------------------
# Pictures and curves


def test_equal_pictures_stand_together_and_others_apart(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / n, side=s) for n, s in (("a", 32), ("b", 32), ("c", 16))]
    album = make_album(open_runs(paths), [], 8)
    assert [list(shown.looks) for shown in album.shown] == [["a", "b"], ["c"]]
    text = Page(write_report(paths, tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Not all runs have the same pictures or the same size (16 px, 32 px)" in text
    assert "a has no checkpoint; its reconstructions are those of step 2." in text


def test_the_psnr_under_a_reconstruction_is_that_of_the_two_pictures(tmp_path: Path) -> None:
    page = write_report([make_run(tmp_path / "run", error=10)], tmp_path / "report.html").read_text()
    assert page.count("28.13 dB") == 2  # 20 log10(255 / 10)


def test_the_error_is_shown_four_times_as_bright() -> None:
    levels = torch.tensor([[10, 200, 0]], dtype=torch.uint8)
    wanted = torch.tensor([[12, 100, 5]], dtype=torch.uint8)
    assert error_of(levels, wanted).tolist() == [[8, 255, 20]]


def test_three_moments_are_the_first_an_early_and_the_last() -> None:
    steps = [Path(f"step-{n}") for n in range(9)]
    assert three_moments(steps) == [steps[0], steps[3], steps[8]]
    assert three_moments(steps[:2]) == steps[:2]


def test_every_run_reconstructs_the_same_pictures(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tiny_recipe["stages"] = [{"name": "only", "images": 8, "batch_size": 4, "losses": {"l1": 1.0}}]
    runs = [add_tokenizer(make_run(tmp_path / n, tiny_recipe), tiny_recipe) for n in ("a", "b")]
    folder = tmp_path / "mine"
    folder.mkdir()
    for index in range(5):
        Image.effect_noise((50, 40), 60).convert("RGB").save(folder / f"{index}.png")
    (folder / "4.png").write_bytes(b"not a picture")
    material = gather([*runs, make_run(tmp_path / "c")], data=[folder], count=3)
    (shown,) = material.album.shown
    assert (shown.name, shown.names, list(shown.looks)) == ("mine", ["0.png", "2.png"], ["a", "b"])
    assert shown.inputs.shape == (2, 3, 32, 32)
    look = shown.looks["a"]
    assert look.latent is not None
    assert look.features is not None
    assert [image.shape[-1] for image in look.pyramid] == [8, 16, 32]
    assert torch.equal(look.outputs, shown.looks["b"].outputs)
    assert any("4.png was left out" in note for note in material.album.notes)
    assert "c has no checkpoint; its reconstructions are those of step 2." in material.album.notes
    text = Page(compose(material).html()).text
    for words in ("An image at every resolution", "latent of a", "latent of b", "Encode, GMACs"):
        assert words in text
    assert text.count("features of timm:vit_tiny_patch16_224") == 1  # One encoder, shown once.


def test_a_tokenizer_that_does_not_open_leaves_the_rest_of_the_report(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    run = add_tokenizer(make_run(tmp_path / "run", tiny_recipe), tiny_recipe)
    (run / "tokenizer" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    text = Page(write_report([run], tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "run could not be opened:" in text
    assert "Three moments" in text


def test_held_out_values_are_parted_into_set_and_metric() -> None:
    assert split_name("psnr") == ("", "psnr")
    assert split_name("photos/psnr") == ("photos", "psnr")
    assert split_name("feature-distance/lite0") == ("", "feature-distance/lite0")
    assert split_name("a/b/feature-distance/lite0") == ("a/b", "feature-distance/lite0")


def test_a_run_keeps_its_colour_where_others_have_no_line() -> None:
    both, own = history(), history()
    for record in both:
        record["values"] = {k: v for k, v in record["values"].items() if k != "vf"}
    report = RunsReport("t")
    add_curves(report, [Run("a", Path("a"), history=both), Run("b", Path("b"), history=own)])
    html = report.html()
    plot = html[html.index('aria-label="VF loss over the pictures seen"') :]
    plot = plot[: plot.index("</svg>")]
    drawn = re.findall(r"<path d=\"M[^\"]*\"[^>]*clip-path=[^>]*stroke: var\(--series-(\d)", plot)
    assert drawn == ["2"]
    for absent in ("gradient over", "images_per_second over", "count over"):
        assert absent not in html
    for there in ("PSNR, held out over", "Feature distance, held out over", "L1 over"):
        assert there in html


def test_names_too_long_for_a_plot_become_numbers_with_a_key() -> None:
    runs = [Run("x" * 40 + str(n), Path(str(n)), history=history()) for n in range(2)]
    report = RunsReport("t")
    add_curves(report, runs)
    assert f"Lines: 1 {runs[0].name}, 2 {runs[1].name}." in report.html()


# ------------------------------------------------------------------------------------------------
# The page


def test_what_is_missing_is_said_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("a"))
    make_run(Path("b"))
    command = "lumitok evaluate reconstruction {} --data FOLDER"
    text = Page(write_report([Path("a"), Path("b")], Path("r.html")).read_text(encoding="utf-8")).text
    assert "These runs have not been evaluated" in text
    assert command.format("a") in text
    assert command.format("b") in text
    save(Path("a"), result(20.0))
    html = write_report([Path("a"), Path("b")], Path("r.html")).read_text(encoding="utf-8")
    assert row(html, "b") == "|&ndash;"
    assert f"`{command.format('b')}` makes them" in html
    assert command.format("a") not in html


def test_the_page_needs_nothing_from_elsewhere_and_tells_no_path(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_recipe["out"] = str(tmp_path / "run")
    tiny_recipe["data"] = {"train": str(tmp_path / "secret" / "pictures")}
    run = make_run(tmp_path / "run", tiny_recipe)
    save(add_tokenizer(run, tiny_recipe), result(20.0))
    Image.new("RGB", (8, 8)).save(run / "evaluation" / "latents-pca.png")
    monkeypatch.chdir(tmp_path)
    html = write_report([Path("run")], Path("r.html")).read_text(encoding="utf-8")
    page = Page(html)
    assert str(tmp_path) not in html
    assert ".../pictures" in html
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base"}
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href"):
                assert str(value).startswith(("#", "data:image/png;base64,"))
    for words in ("latents-pca", "PSNR, val", "Reconstruction on val", "Cost", "What was run", "Curves"):
        assert words in page.text


def test_every_name_is_escaped(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tiny_recipe["about"] = EVIL
    run = make_run(tmp_path / EVIL.replace("/", ""), tiny_recipe)
    other = make_run(tmp_path / "plain")
    evil = Protocol(data=replace(PICTURES, name=EVIL), method=EVIL)
    save(run, result(20.0, evil, EVIL, step=1, left_out={EVIL: 1}))
    save(other, result(21.0, replace(evil, method="other"), EVIL))
    html = write_report([run, other], tmp_path / "r.html", title=EVIL).read_text(encoding="utf-8")
    page = Page(html)
    assert EVIL in page.text
    bold = {word for tag, word in zip_bold(html) if tag == "b"}
    assert bold <= {"Protocol.", "a", "b", "c", "*", "&lt;b&gt;&amp;&#x27;&quot;."}


def zip_bold(html: str) -> list[tuple[str, str]]:
    return [("b", word) for word in re.findall(r"<b>(.*?)</b>", html)]


def test_only_full_paths_of_a_recipe_are_cut(tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["out"] = "/home/someone/runs/x"
    tiny_recipe["data"] = {"train": "pictures/train", "validation": {"photos": "~/photos", "b": "/a/b/c"}}
    text = shown_recipe(Recipe.model_validate(tiny_recipe))
    assert "someone" not in text
    assert "\nout:" not in text
    assert "train: pictures/train" in text
    assert "photos: '.../photos'" in text
    assert "b: '.../c'" in text


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    run = save(make_run(tmp_path / "run"), result(20.0))
    pages = [write_report([run], tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_every_loss_of_a_recipe_has_a_title_over_its_curve() -> None:
    weights = {name for name, key in LossConfig.model_fields.items() if key.annotation is float}
    assert {name for name in weights if "margin" not in name} - {"feature_distance"} <= TITLES.keys()


def test_a_tokenizer_alone_has_no_curves(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    run = add_tokenizer(tmp_path / "run", tiny_recipe)
    text = Page(write_report([run / "tokenizer"], tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "Curves" not in text
    assert "Trainable" in text
    assert "tokenizer keeps no held-out pictures" in text


def test_examples_that_do_not_fit_their_inputs_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "examples" / "step-00000002" / "1.png").unlink()
    with pytest.raises(LumitokError, match="does not fit the pictures"):
        gather([run])


def test_pictures_are_pixels_of_the_runs_own_files(tmp_path: Path) -> None:
    (shown,) = make_album(open_runs([make_run(tmp_path / "run")]), [], 1).shown
    expected: Tensor = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    assert torch.equal(shown.inputs, expected)
    assert torch.equal(shown.looks["run"].outputs, expected + 10)


def test_many_metrics_stand_below_one_another_and_fold_how_they_were_made() -> None:
    def made(name: str, value: float) -> Results:
        numbers = [
            Number(f"metric {i}", value + i, Protocol(data=PICTURES, method=f"way {i}")) for i in range(12)
        ]
        return Results("latents", name, numbers)

    html = table(run_of("one", made("one", 1.0)), run_of("two", made("two", 2.0)))
    assert row(html, "metric 11") == "|12|13"  # A row a metric, a column a run.
    above, _, folded = html.partition("<details>")
    assert "How each of the 12 numbers was made" in folded
    assert "way 11" in folded
    assert "way 11" not in above
    assert "data: " in above  # What is common to all stays in sight.
