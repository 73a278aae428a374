"""Generated pictures against real ones, on Inception with made-up weights and on a stand-in for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from lumitok.errors import LumitokError
from lumitok.evaluation.results import Results
from lumitok.pipelines import evaluate_generation as module
from lumitok.pipelines.evaluate_generation import Settings, evaluate_generation
from tests.pipelines.generation import SIDE, StandIn, Tensors, judge, pictures, warned, write


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_extractor", lambda name, *_, **__: StandIn(name))


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return write(tmp_path / "samples", pictures(9, seed=0))


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return write(tmp_path / "reference", pictures(10, seed=1))


def frechet_by_root(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Fréchet distance by scipy's matrix root, in the few dimensions that the rows span."""
    basis = np.linalg.svd(np.concatenate([a, b]).astype(np.float64), full_matrices=False)[2]
    a, b = a @ basis.T, b @ basis.T
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = pytest.importorskip("scipy.linalg").sqrtm(first @ second).real
    offset = a.mean(axis=0) - b.mean(axis=0)
    return float(offset @ offset + np.trace(first + second - 2 * root))


# ------------------------------------------------------------------------------------------------
# The numbers


def test_the_numbers_are_torch_fidelitys(tmp_path: Path) -> None:
    """The same weights file, the same pictures, the other implementation."""
    fidelity = pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from tests.evaluation.inception import write_random_inception

    weights = write_random_inception(tmp_path / "made-up.pth")
    arrays = pictures(4, seed=0, side=32), pictures(5, seed=1, side=32)
    write(tmp_path / "samples", arrays[0])
    np.savez(tmp_path / "reference.npz", arrays[1])
    settings = Settings(k=1, split_size=4, kid_subsets=3, kid_subset_size=3)
    found = evaluate_generation(
        tmp_path / "samples",
        tmp_path / "reference.npz",
        weights=weights,
        verify=False,
        settings=settings,
        seed=2020,  # torch-fidelity's.
    )
    generated, real = (torch.from_numpy(array).permute(0, 3, 1, 2) for array in arrays)
    wanted: dict[str, bool] = {"isc": True, "kid": True, "prc": True}
    theirs = fidelity.calculate_metrics(
        input1=Tensors(generated),
        input2=Tensors(real),
        feature_extractor="inception-v3-compat",  # Precision and recall would be taken on VGG16.
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(weights),
        isc_splits=1,
        kid_subsets=3,
        kid_subset_size=3,
        prc_neighborhood=1,
        cache=False,
        save_cpu_ram=True,  # Without workers.
        **wanted,
    )
    assert found["IS"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert found["KID"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3, abs=1e-7)
    assert (found["precision"], found["recall"]) == (theirs["precision"], theirs["recall"])
    network = FeatureExtractorInceptionV3("x", ["2048"], str(weights))
    features = [network(pixels)[0].numpy() for pixels in (generated, real)]
    assert found["FID"] == pytest.approx(frechet_by_root(*features), rel=1e-4)
    assert found["sFID"] > 0
    assert [number.name for number in found.numbers] == ["FID", "sFID", "IS", "precision", "recall", "KID"]


def test_each_number_says_how_it_was_made(stand_in: None, samples: Path, reference: Path) -> None:
    results = judge(samples, reference, seed=3)
    numbers = {number.name: number for number in results.numbers}
    for name, number in numbers.items():
        protocol = number.protocol
        assert (protocol.data.name, protocol.data.count, protocol.size) == ("samples", 9, SIDE)
        assert (protocol.extractor, protocol.weights, protocol.seed) == ("stand-in", "0" * 64, 3)
        assert protocol.preparation == "none: as stored"
        assert (protocol.reference is None) == (name == "IS")
        if protocol.reference is not None:
            assert (protocol.reference.name, protocol.reference.count) == ("reference", 10)
    methods = {name: number.protocol.method or "" for name, number in numbers.items()}
    assert "splits of 3 in the given order" in methods["IS"]
    assert "without bias" in methods["IS"]
    assert "first 7 channels" in methods["sFID"]
    assert "first 7 channels" not in methods["FID"]
    assert "k = 2" in methods["recall"]
    assert "3 subsets of 4" in methods["KID"]
    better = {name: number.better for name, number in numbers.items()}
    assert better == {
        "FID": "low", "sFID": "low", "IS": "high", "precision": "high", "recall": "high", "KID": "low",
    }  # fmt: skip
    assert None not in (numbers["KID"].spread, numbers["IS"].spread)


def test_results_survive_their_file(stand_in: None, samples: Path, reference: Path, tmp_path: Path) -> None:
    results = judge(samples, reference)
    assert Results.load(results.save(tmp_path / "results.json")) == results
    assert (results.kind, results.subject) == ("generation", str(samples))


def test_a_set_against_itself(stand_in: None, samples: Path) -> None:
    results = judge(samples, samples)
    assert results["FID"] == pytest.approx(0, abs=1e-6)
    assert (results["precision"], results["recall"]) == (1, 1)


def test_another_encoder_never_gives_fid(stand_in: None, samples: Path, reference: Path) -> None:
    results = judge(samples, reference, encoder="efficientnet-lite2")
    names = ["FD", "precision", "recall", "KD"]
    assert [number.name for number in results.numbers] == [f"{name}-efficientnet-lite2" for name in names]
    large = judge(samples, reference, encoder="dinov2-large", metrics=["fd", "kd"])
    assert [number.name for number in large.numbers] == ["FD-DINOv2", "KD-DINOv2"]


def test_the_batch_size_changes_nothing(stand_in: None, samples: Path, reference: Path) -> None:
    one, all_at_once = (judge(samples, reference, batch_size=size) for size in (1, 64))
    for first, second in zip(one.numbers, all_at_once.numbers, strict=True):
        assert first.value == pytest.approx(second.value, rel=1e-5)


def test_a_folder_and_its_npz_give_the_same(stand_in: None, samples: Path, reference: Path) -> None:
    npz = samples.with_suffix(".npz")
    np.savez(npz, pictures(9, seed=0))
    folder, array = judge(samples, reference), judge(npz, reference)
    assert [number.value for number in folder.numbers] == [number.value for number in array.numbers]


def test_a_count_draws_with_the_seed(stand_in: None, samples: Path, reference: Path) -> None:
    one, same, other = (judge(samples, reference, count=6, seed=seed, metrics=["fid"]) for seed in (0, 0, 1))
    assert one["FID"] == same["FID"] != other["FID"]
    data = one.numbers[0].protocol.data
    assert data.count == 6
    assert data.files != other.numbers[0].protocol.data.files
    with pytest.raises(LumitokError, match="10 samples were asked for, and there are 9"):
        judge(samples, reference, count=10)


def test_a_size_brings_both_to_it(stand_in: None, samples: Path, tmp_path: Path) -> None:
    larger = write(tmp_path / "larger", pictures(10, seed=1, side=32))
    with pytest.raises(LumitokError, match="samples have 8 px a side and the reference pictures 32"):
        judge(samples, larger)
    protocol = judge(samples, larger, size=4, metrics=["fid"]).numbers[0].protocol
    assert (protocol.size, protocol.preparation) == (4, "ADM's centre crop to 4 px")


# ------------------------------------------------------------------------------------------------
# Stored statistics


def stored(path: Path, arrays: NDArray[np.uint8] | None, *, spatial: bool = True) -> Path:
    """Write statistics whose distance has a closed form: covariances that are multiples of 1."""
    content: dict[str, NDArray[Any]] = {"mu": np.zeros(2048), "sigma": 0.25 * np.eye(2048)}
    if spatial:
        content |= {"mu_s": np.zeros(2023), "sigma_s": 4.0 * np.eye(2023)}
    if arrays is not None:
        content["arr_0"] = arrays
    np.savez(path, **content)
    return path


def to_multiple(features: NDArray[Any], scale: float) -> float:
    """Fréchet distance to N(0, scale * 1)."""
    centred = (features - features.mean(axis=0)).astype(np.float64) / np.sqrt(len(features) - 1)
    roots = np.linalg.svd(centred, compute_uv=False)
    offset = features.mean(axis=0, dtype=np.float64)
    spread = float(np.sum(roots**2) + scale * features.shape[1] - 2 * np.sqrt(scale) * np.sum(roots))
    return float(offset @ offset) + spread


def test_stored_statistics_serve_fid_and_their_pictures_the_rest(
    stand_in: None, samples: Path, reference: Path, tmp_path: Path
) -> None:
    path = stored(tmp_path / "stored.npz", pictures(10, seed=1))
    results, plain = judge(samples, path), judge(samples, reference)
    extracted = StandIn()(torch.from_numpy(pictures(9, seed=0)).permute(0, 3, 1, 2))
    assert extracted.spatial is not None
    assert results["FID"] == pytest.approx(to_multiple(extracted.pooled.numpy(), 0.25), rel=1e-5)
    assert results["sFID"] == pytest.approx(to_multiple(extracted.spatial.numpy(), 4.0), rel=1e-5)
    for name in ("IS", "precision", "recall", "KID"):
        assert results[name] == plain[name]
    numbers = {number.name: number.protocol for number in results.numbers}
    assert re.search(r"to the statistics stored in stored.npz \(\w{12}\)", numbers["FID"].method or "")
    assert numbers["FID"].reference is None
    assert numbers["recall"].reference is not None
    assert not warned(results, "fewer reference pictures")  # FID is not taken on them.


def test_statistics_without_pictures_leave_out_what_needs_them(
    stand_in: None, samples: Path, tmp_path: Path
) -> None:
    path = stored(tmp_path / "stored.npz", None, spatial=False)
    results = judge(samples, path)
    assert [number.name for number in results.numbers] == ["FID", "IS"]
    assert warned(results, "sfid, precision, recall, kid left out: 'stored.npz' does not hold")
    assert warned(results, "does not say at which size")
    with pytest.raises(LumitokError, match=r"recall cannot be taken against 'stored.npz'"):
        judge(samples, path, metrics=["recall"])


def test_another_encoder_reads_the_pictures_beside_the_statistics(
    stand_in: None, samples: Path, reference: Path, tmp_path: Path
) -> None:
    path = stored(tmp_path / "stored.npz", pictures(10, seed=1))
    of_file, of_folder = (judge(samples, place, encoder="dinov2-large") for place in (path, reference))
    assert of_file["FD-DINOv2"] == of_folder["FD-DINOv2"]
    with pytest.raises(LumitokError, match="has no array arr_0, only mu, sigma; pictures are wanted"):
        judge(samples, stored(tmp_path / "alone.npz", None, spatial=False), encoder="dinov2-large")


def test_stored_pictures_of_another_size_are_an_error(stand_in: None, samples: Path, tmp_path: Path) -> None:
    path = stored(tmp_path / "stored.npz", pictures(10, seed=1, side=16), spatial=False)
    with pytest.raises(LumitokError, match="samples have 8 px a side and the reference pictures 16"):
        judge(samples, path, size=8)  # The statistics were made at their own size: nothing is cropped.


# ------------------------------------------------------------------------------------------------
# What is refused, and what is warned of


@pytest.mark.parametrize(
    ("metric", "settings", "message"),
    [
        ("is", Settings(split_size=10), "is needs at least 10 samples .*, found 9"),
        ("precision", Settings(k=9), "precision needs at least 10 samples .*, found 9"),
        ("kid", Settings(kid_subset_size=10), "kid needs at least 10 samples .*, found 9"),
    ],
)
def test_too_few_pictures_are_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch,
    samples: Path,
    reference: Path,
    metric: str,
    settings: Settings,
    message: str,
) -> None:
    monkeypatch.setattr(module, "open_extractor", lambda *_, **__: pytest.fail("the work began"))
    with pytest.raises(LumitokError, match=message):
        evaluate_generation(samples, reference, metrics=[metric], settings=settings)


def test_too_few_reference_pictures_are_refused(stand_in: None, samples: Path, tmp_path: Path) -> None:
    few = write(tmp_path / "few", pictures(3, seed=1))
    with pytest.raises(LumitokError, match=r"kid needs at least 4 reference pictures .*, found 3"):
        judge(samples, few, metrics=["fid", "kid"])
    assert judge(samples, few, metrics=["is"])["IS"] > 1  # It has no reference to speak of.


def test_what_nobody_named_is_left_out_of_small_sets(stand_in: None, samples: Path, reference: Path) -> None:
    results = judge(samples, reference, settings=Settings())
    assert [number.name for number in results.numbers] == ["FID", "sFID", "precision", "recall"]
    missing = results.tables["not measured"]
    assert set(missing) == {"IS", "KID"}
    assert re.match(r"it needs at least 5,000 samples .*, found 9; give more, lower its split", missing["IS"])
    assert "1,000 samples" in missing["KID"]
    other = judge(samples, reference, settings=Settings(), encoder="dinov2-large")
    assert list(other.tables["not measured"]) == ["KD-DINOv2"]
    assert "not measured" not in judge(samples, reference).tables


def test_a_set_too_small_for_anything_is_refused(stand_in: None, tmp_path: Path, reference: Path) -> None:
    one = write(tmp_path / "one", pictures(1, seed=0))
    with pytest.raises(LumitokError, match=r"nothing can be measured of .*one'. fid: it needs at least 2"):
        judge(one, reference)


def test_how_the_samples_were_made_goes_into_every_protocol(
    stand_in: None, samples: Path, reference: Path
) -> None:
    made = {"labels": "drawn evenly", "guidance": "1.5 in [0.1, 1]", "solver": "Euler", "steps": 50}
    for number in judge(samples, reference, **made).numbers:
        assert made.items() <= vars(number.protocol).items()
    for number in judge(samples, reference).numbers:
        assert not made.keys() & number.protocol.to_json().keys()
    with pytest.raises(LumitokError, match="got 0 steps"):
        judge(samples, reference, steps=0)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([0, 1, 2] * 3, "balanced, 3 a class, 3 classes"),
        ([0] * 5 + [7] * 4, "2 classes, 4 to 5 a class"),
        ([4] * 9, "balanced, 9 a class, 1 class"),
    ],
)
def test_labels_are_counted_where_the_samples_have_them(
    stand_in: None, tmp_path: Path, reference: Path, classes: list[int], words: str
) -> None:
    path = tmp_path / "samples.npz"
    np.savez(path, pictures(9, seed=0), np.array(classes))
    numbers = judge(path, reference, metrics=["fid", "precision"]).numbers
    assert [number.protocol.labels for number in numbers] == [words, words]
    assert judge(path, reference, metrics=["fid"], labels="drawn").numbers[0].protocol.labels == "drawn"


@pytest.mark.parametrize(
    ("encoder", "metric", "message"),
    [
        ("inception", "fidd", "did you mean 'fid'"),
        ("dinov2-large", "fid", r"the metrics on 'dinov2-large' are fd, precision, recall, kd, not 'fid'"),
    ],
)
def test_an_unknown_metric_is_refused(
    stand_in: None, samples: Path, reference: Path, encoder: str, metric: str, message: str
) -> None:
    with pytest.raises(LumitokError, match=message):
        judge(samples, reference, encoder=encoder, metrics=[metric])


def test_an_odd_count_is_warned_of(stand_in: None, samples: Path, reference: Path) -> None:
    assert warned(judge(samples, reference, metrics=["fid"]), r"taken on 9 samples; papers take 50,000")
    assert not judge(samples, reference, metrics=["precision"]).tables["warnings"]


def test_a_smaller_reference_is_warned_of(stand_in: None, samples: Path, reference: Path) -> None:
    pattern = r"fewer reference pictures \(9\) than samples \(10\)"
    assert warned(judge(reference, samples, metrics=["fid"]), pattern)
    assert not warned(judge(samples, reference, metrics=["fid"]), "fewer reference pictures")


def test_samples_sorted_by_class_are_scored_shuffled(stand_in: None, reference: Path, tmp_path: Path) -> None:
    colours = np.repeat(np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]]), 30, axis=0)
    noise = np.random.default_rng(0).integers(0, 50, (90, SIDE, SIDE, 3))
    sorted_ = (colours[:, None, None] + noise).astype(np.uint8)
    mixed = sorted_[np.random.default_rng(1).permutation(90)]
    np.savez(tmp_path / "sorted.npz", sorted_)
    np.savez(tmp_path / "mixed.npz", mixed)
    settings = Settings(split_size=30)
    of_sorted, of_mixed = (
        evaluate_generation(tmp_path / f"{name}.npz", reference, metrics=["is"], settings=settings, seed=5)
        for name in ("sorted", "mixed")
    )
    assert warned(of_sorted, "sorted by class")
    assert "shuffled with seed 5" in (of_sorted.numbers[0].protocol.method or "")
    assert not warned(of_mixed, "sorted by class")
    assert of_sorted["IS"] == pytest.approx(of_mixed["IS"], rel=0.1)
    whole = evaluate_generation(
        tmp_path / "sorted.npz", reference, metrics=["is"], settings=Settings(split_size=90)
    )
    assert not warned(whole, "sorted by class")  # In one split the order does not matter.


def test_bad_pictures_and_copies_are_named_and_counted(
    stand_in: None, samples: Path, reference: Path
) -> None:
    (samples / "002.png").write_bytes(b"no picture")
    (samples / "notes.txt").touch()
    (reference / "010.png").write_bytes((reference / "004.png").read_bytes())
    results = judge(samples, reference)
    assert results.left_out == {"samples: not a picture by its extension": 1, "samples: cannot be read": 1}
    assert warned(results, r"1 of the samples could not be read .*'002.png' \(it holds no picture")
    assert warned(results, r"1 of the 11 reference pictures are copies .*'010.png' \(as '004.png'\)")
    assert results.numbers[0].protocol.data.count == 8


def test_unreadable_sets_are_refused(stand_in: None, samples: Path, reference: Path) -> None:
    for path in samples.iterdir():
        path.write_bytes(path.read_bytes()[:60])  # The header is whole.
    with pytest.raises(LumitokError, match=r"none of the 9 samples of .* can be read"):
        judge(samples, reference)


# ------------------------------------------------------------------------------------------------
# Several processes

SCRIPT = """
import sys
from pathlib import Path
import torch
from lumitok.errors import LumitokError
from lumitok.evaluation.processes import is_main
from lumitok.pipelines import evaluate_generation as module
from tests.pipelines.generation import StandIn, judge

torch.set_num_threads(1)
module.open_extractor = lambda name, *_, **__: StandIn(name)
samples, reference, mixed, out = map(Path, sys.argv[1:5])
judge(samples, reference).save(out / f"results-{is_main()}.json")
try:
    judge(mixed, reference, metrics=["fid"])
except LumitokError as error:
    (out / f"error-{is_main()}.txt").write_text(str(error))
"""


def test_two_processes_give_what_one_gives_and_fail_together(
    stand_in: None, samples: Path, reference: Path, tmp_path: Path
) -> None:
    mixed = write(tmp_path / "mixed", pictures(9, seed=0))
    # Of another size, and in the second share alone: the first process must not wait for it.
    Image.fromarray(pictures(1, seed=0, side=16)[0]).save(mixed / "008.png")
    # Nine pictures, so that a padded share would count one twice; copies that lie in two shares.
    (samples / "008.png").write_bytes((samples / "000.png").read_bytes())
    (samples / "007.png").write_bytes(b"no picture")
    alone = judge(samples, reference)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, (samples, reference, mixed, tmp_path))],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for main in (True, False):
        found = Results.load(tmp_path / f"results-{main}.json")
        for mine, theirs in zip(found.numbers, alone.numbers, strict=True):
            assert mine.value == pytest.approx(theirs.value, rel=1e-6)
            assert mine.protocol == theirs.protocol
        assert found.tables == alone.tables
        assert found.left_out == alone.left_out
        assert "are of several sizes" in (tmp_path / f"error-{main}.txt").read_text()
