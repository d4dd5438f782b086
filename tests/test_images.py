"""Image files as videos of one frame: pixels by Pillow's and OpenCV's word, what is rejected, labels, same bytes."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from synthetic import texture, write_video

from mgm_prep.cli import main
from mgm_prep.config import ExtractSettings
from mgm_prep.decoding.container import Unreadable
from mgm_prep.decoding.image import ImageFile
from mgm_prep.extraction.extract import extract
from mgm_prep.extraction.failures import read_failures
from mgm_prep.sources.discover import ANY_KIND, ONLY_IMAGES, find_sources
from mgm_prep.store_tools.repair import repair
from mgm_prep.store_tools.verify import verify
from mgm_shared.errors import UserError
from mgm_shared.storage import store_path
from mgm_shared.store import open_store

HEIGHT, WIDTH = 48, 80
ORIENTATION_TAG = 0x0112
# How a viewer turns the stored picture, by the values of EXIF's tag (TIFF 6.0, page 36).
TURNS: dict[int, Callable[[Any], Any]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image),
}


def smooth(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """A colourful picture that survives JPEG; no two corners are alike."""
    return np.asarray(cv2.GaussianBlur(texture(height, width, seed), (0, 0), 4), np.uint8)


def pixels(path: Path) -> NDArray[np.uint8]:
    """What is read of an image file, as RGB."""
    with ImageFile(path) as image:
        (picture,) = image.pictures()
        return np.asarray(picture.frame.to_ndarray(format="rgb24"), np.uint8)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_an_image_is_read_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    path, image_HWC = tmp_path / f"a.{suffix}", smooth()
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(image_HWC).save(path, exif=exif, **options | ({"lossless": True} if suffix == "webp" else {}))
    expected_HWC = TURNS[orientation](image_HWC)
    read_HWC = pixels(path)
    assert read_HWC.shape == expected_HWC.shape
    assert np.abs(read_HWC.astype(int) - expected_HWC).mean() < (2 if suffix == "jpg" else 1e-9)
    if suffix == "jpg":
        # OpenCV turns JPEG files itself.
        assert np.abs(read_HWC.astype(int) - np.asarray(cv2.imread(str(path)))[..., ::-1]).mean() < 0.5


def test_all_kinds_of_pixels_become_opaque_rgb(tmp_path: Path) -> None:
    image_HWC = smooth(1)
    whole = Image.fromarray(image_HWC)
    grey_HW = np.asarray(whole.convert("L"))
    alpha_HW = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    on_white_HWC = 255 + (image_HWC.astype(float) - 255) * alpha_HW[..., None] / 255
    clear = whole.copy()
    clear.putalpha(Image.fromarray(alpha_HW))
    palette = whole.quantize(64)
    two = Image.fromarray(np.where(alpha_HW < 100, 0, 1).astype(np.uint8), mode="P")
    two.putpalette([200, 30, 40, 10, 20, 30])
    bits = whole.convert("1")
    files: dict[str, tuple[Image.Image, Any, dict[str, Any]]] = {
        "rgb.png": (whole, image_HWC, {}),
        "grey.png": (whole.convert("L"), grey_HW[..., None], {}),
        "grey.jpg": (whole.convert("L"), grey_HW[..., None], {"quality": 98}),
        "bits.png": (bits, np.asarray(bits)[..., None] * 255.0, {}),
        "palette.png": (palette, np.asarray(palette.convert("RGB")), {}),
        "palette.gif": (palette, np.asarray(palette.convert("RGB")), {}),
        "alpha.png": (clear, on_white_HWC, {}),
        "alpha.webp": (clear, on_white_HWC, {"lossless": True, "exact": True}),
        "grey-alpha.png": (clear.convert("LA"), 255 + (grey_HW - 255.0)[..., None] * alpha_HW[..., None] / 255, {}),
        "hole.png": (two, np.where(alpha_HW[..., None] < 100, 255, (10, 20, 30)), {"transparency": 0}),
        "hole.gif": (two, np.where(alpha_HW[..., None] < 100, 255, (10, 20, 30)), {"transparency": 0}),
        "cmyk.jpg": (whole.convert("CMYK"), image_HWC, {"quality": 98, "subsampling": 0}),
    }
    for name, (image, expected_HWC, options) in files.items():
        image.save(tmp_path / name, **options)
        difference_HWC = np.abs(pixels(tmp_path / name).astype(float) - expected_HWC)
        assert difference_HWC.mean() < (2 if name.endswith("jpg") else 1), name
        assert difference_HWC.max() < 40, name


@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_sixteen_bits_become_eight(tmp_path: Path, num_channels: int) -> None:
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH, 1).repeat(num_channels, 2)
    values[..., 3:] = 65535
    assert cv2.imwrite(str(tmp_path / "a.png"), values)
    np.testing.assert_allclose(pixels(tmp_path / "a.png"), values[..., :1].repeat(3, 2) / 257.0, atol=1)


def animation(path: Path, suffix: str) -> None:
    first, second = (Image.fromarray(smooth(seed)) for seed in (0, 1))
    options: dict[str, Any] = {"duration": 100} | ({"lossless": True} if suffix == "webp" else {})
    first.save(path, save_all=True, append_images=[second], **options)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_what_is_no_still_image_is_rejected_with_a_reason(tmp_path: Path) -> None:
    expected = {}
    for suffix in ("webp", "png", "gif"):
        animation(tmp_path / f"moves.{suffix}", suffix)
        expected[f"moves.{suffix}"] = "an animation of 2 frames"
    whole = {}
    for suffix in ("jpg", "png", "webp", "gif"):
        Image.fromarray(texture(HEIGHT, WIDTH, 3)).save(tmp_path / f"whole.{suffix}")
        whole[suffix] = (tmp_path / f"whole.{suffix}").read_bytes()
        for share in (0.1, 0.5, 0.9):
            name = f"cut{share:.0%}.{suffix}"
            (tmp_path / name).write_bytes(whole[suffix][: int(share * len(whole[suffix]))])
            expected[name] = ""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "broken.png").write_bytes(whole["png"][:60] + b"\0" * 40 + whole["png"][100:])
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    Image.fromarray(smooth()).save(tmp_path / "other.jpg", format="BMP")
    (tmp_path / "folder.jpg").mkdir()
    expected |= {
        "empty.jpg": "not a JPEG",
        "text.png": "not a JPEG",
        "broken.png": "",
        "bomb.png": "exceeds limit",
        "other.jpg": "not a JPEG",
        "folder.jpg": "not a regular file",
    }
    for name, reason in expected.items():
        with pytest.raises(Unreadable) as caught:
            ImageFile(tmp_path / name)
        assert reason in str(caught.value), (name, str(caught.value))
        assert str(caught.value), name
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value), name


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif"])
def test_a_cut_file_is_rejected_or_whole(tmp_path: Path, suffix: str) -> None:
    """Whatever is missing: never a picture whose lower part is grey."""
    Image.fromarray(texture(16, 24, 3)).save(tmp_path / f"whole.{suffix}")
    content, whole_HWC = (tmp_path / f"whole.{suffix}").read_bytes(), pixels(tmp_path / f"whole.{suffix}")
    num_rejected = 0
    lengths = [*range(0, len(content) - 40, 17), *range(len(content) - 40, len(content))]
    for length in lengths:
        (tmp_path / f"cut.{suffix}").write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(pixels(tmp_path / f"cut.{suffix}"), whole_HWC)
        except Unreadable:
            num_rejected += 1
    assert num_rejected > len(lengths) / 2


def test_the_limit_on_pixels_holds_before_memory_is_taken(tmp_path: Path) -> None:
    Image.fromarray(smooth()).save(tmp_path / "a.png")
    assert ImageFile(tmp_path / "a.png", ExtractSettings(max_pixels=HEIGHT * WIDTH)).header.width == WIDTH
    with pytest.raises(Unreadable, match="80×48 px, more than max-pixels = 3839"):
        ImageFile(tmp_path / "a.png", ExtractSettings(max_pixels=HEIGHT * WIDTH - 1))


def test_a_file_is_read_as_what_it_holds_and_not_as_it_is_called(tmp_path: Path) -> None:
    """ImageNet has PNG files called .JPEG; phones write JPEG files with a second picture."""
    Image.fromarray(smooth(1)).save(tmp_path / "a.JPEG", format="PNG")
    np.testing.assert_array_equal(pixels(tmp_path / "a.JPEG"), smooth(1))
    first, second = Image.fromarray(smooth(1)), Image.fromarray(smooth(2))
    first.save(tmp_path / "two.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    assert np.abs(pixels(tmp_path / "two.jpg").astype(int) - smooth(1)).mean() < 3
    with ImageFile(tmp_path / "two.jpg") as image:
        assert image.header.codec == "image/jpeg"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of two classes and sizes, and what is none of them."""
    for number, name in enumerate(("train/cat/1.jpg", "train/cat/2.PNG", "train/dog/3.webp", "val/dog/4.jpeg")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(number, *((64, 96) if number % 2 else (96, 64)))).save(path)
    (tmp_path / "images/train/cat/broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "images/readme.md").touch()
    return tmp_path / "images"


def test_a_folder_of_images_becomes_a_store_of_videos_of_one_frame(images: Path, tmp_path: Path) -> None:
    summary = extract(images, tmp_path / "a.store", images=True)
    assert (summary.listed, summary.done, summary.failed, summary.frames) == (5, 4, 1, 4)
    assert (summary.ignored_files, summary.without_vectors, summary.without_b_vectors) == (1, {}, {})
    failures = read_failures(store_path(tmp_path / "a.store"))
    assert set(failures) == {"train/cat/broken.jpg"}
    store = open_store(tmp_path / "a.store")
    rows = {row["video_id"]: (row["label"], row["split"], row["codec"]) for row in store.table.to_pylist()}
    assert rows == {
        "train/cat/1.jpg": ("cat", "train", "image/jpeg"),
        "train/cat/2.PNG": ("cat", "train", "image/png"),
        "train/dog/3.webp": ("dog", "train", "image/webp"),
        "val/dog/4.jpeg": ("dog", "val", "image/jpeg"),
    }
    for number, video_id in enumerate(rows):
        video = store[video_id]
        assert (video.num_frames, video.time_s[:].tolist(), video.picture_type[:].tolist()) == (1, [0.0], [1])
        assert np.isnan(video.motion[:]).all()
        expected_HWC = smooth(number, *((64, 96) if number % 2 else (96, 64)))
        assert np.abs(video.frames[0].astype(int) - expected_HWC).mean() < 4
    assert verify(tmp_path / "a.store", images).compared == 4
    assert verify(tmp_path / "a.store", images).problems == []


def test_the_same_images_give_the_same_bytes_also_resumed_and_repaired(images: Path, tmp_path: Path) -> None:
    def content(store: Path) -> dict[str, bytes]:
        files = sorted(path for path in store.rglob("*") if path.is_file())
        return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}

    extract(images, tmp_path / "a.store", images=True)
    extract(images, tmp_path / "b.store", images=True)
    expected = content(tmp_path / "a.store")
    assert content(tmp_path / "b.store") == expected
    assert extract(images, tmp_path / "b.store", images=True).extracted_now == 0
    shard = next(path for path in (tmp_path / "b.store/parts").rglob("c.*") if path.stat().st_size > 300)
    damaged_bytes = bytearray(shard.read_bytes())
    damaged_bytes[100] ^= 255
    shard.write_bytes(damaged_bytes)
    assert repair(tmp_path / "b.store", images).repaired_parts
    assert content(tmp_path / "b.store") == expected


def test_images_are_taken_only_when_asked_for(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no video .*--images takes image files"):
        find_sources(images)
    write_video(images / "train/cat/clip.mp4", [texture(64, 96, 5)] * 3)
    assert [source.video_id for source in find_sources(images).sources] == ["train/cat/clip.mp4"]
    both = find_sources(images, kinds=ANY_KIND).sources
    assert [source.video_id for source in both if not source.is_image] == ["train/cat/clip.mp4"]
    assert len(both) == 6
    assert all(source.is_image for source in find_sources(images, kinds=ONLY_IMAGES).sources)
    (tmp_path / "no").mkdir()
    with pytest.raises(UserError, match=r"holds no image; known suffixes: \.gif"):
        find_sources(tmp_path / "no", kinds=ONLY_IMAGES)


def test_a_store_of_videos_and_images_is_verified_and_repaired_with_both(images: Path, tmp_path: Path) -> None:
    write_video(images / "train/cat/clip.mp4", [texture(64, 96, 5)] * 3)
    extract(images, tmp_path / "a.store", images=True)
    extract(images, tmp_path / "a.store")
    assert len(open_store(tmp_path / "a.store")) == 5
    assert verify(tmp_path / "a.store", images).compared == 5


def test_a_list_of_images_with_labels(images: Path, tmp_path: Path) -> None:
    lines = ["images/train/cat/1.jpg 3", "images/train/dog/3.webp 7"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    (tmp_path / "images/without suffix.jpg").write_bytes((images / "val/dog/4.jpeg").read_bytes())
    found = find_sources(tmp_path / "list.txt", kinds=ONLY_IMAGES)
    assert [(source.video_id, source.label, source.is_image) for source in found.sources] == [
        ("images/train/cat/1.jpg", "3", True),
        ("images/train/dog/3.webp", "7", True),
    ]
    (tmp_path / "list.txt").write_text("images/without suffix.jpg 4\n")
    (source,) = find_sources(tmp_path / "list.txt", kinds=ONLY_IMAGES).sources
    assert (source.video_id, source.label) == ("images/without suffix.jpg", "4")


def test_the_command_line_takes_images(images: Path, tmp_path: Path) -> None:
    preview = run("extract", images, tmp_path / "a.store", "--images", "--dry-run", "--json")
    assert json.loads(preview.stdout)["to_do"] == 5
    result = run("extract", images, tmp_path / "a.store", "--images", "--workers", 0, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["done"] == 4
    assert "motion" not in result.stderr
    without = run("extract", images, tmp_path / "b.store")
    assert (without.exit_code, without.stderr.count("\n")) == (2, 1)
    assert "--images" in without.stderr
