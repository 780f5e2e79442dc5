"""Folders of real images: found in one order, checked before anything starts, decoded as MLPerf does."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from workloads import images
from workloads.protocol import WorkloadError


def picture(width: int = 90, height: int = 70, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as a photograph."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=2)
    noisy = smooth + random.normal(0, 10, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes and one file beside them, as ImageFolder and MLPerf's flat folder have them."""
    for name in ("b/2.JPEG", "a/10.jpg", "a/9.png", "0.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        picture(seed=len(name)).save(path)

    (tmp_path / "labels.txt").write_text("0 1\n")
    (tmp_path / "a" / ".hidden.jpg").write_text("no image")
    return tmp_path


def test_images_are_found_in_one_order(folder: Path) -> None:
    found = images.inspect(folder)
    assert [path.relative_to(folder).as_posix() for path in found.files] == [
        "0.jpeg",
        "a/10.jpg",
        "a/9.png",
        "b/2.JPEG",
    ]
    assert found.ignored == 2
    assert found.decoded == 4


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="does not exist"):
        images.inspect(tmp_path / "absent")

    (tmp_path / "file").write_text("")
    with pytest.raises(WorkloadError, match="is no folder"):
        images.inspect(tmp_path / "file")


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="it is empty"):
        images.inspect(tmp_path)

    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(WorkloadError, match="only 1 other files"):
        images.inspect(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(folder: Path) -> None:
    (folder / "b").chmod(0)
    try:
        with pytest.raises(WorkloadError, match="cannot be read"):
            images.inspect(folder)
    finally:
        (folder / "b").chmod(0o700)


def saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


BROKEN = {
    "empty": (b"", "empty file"),
    "text": (b"this is a text, renamed", "not a JPEG or PNG image"),
    "gif": (saved(picture(), "GIF"), "not a JPEG or PNG image"),
    "truncated-jpeg": (saved(picture(), "JPEG")[:-400], "damaged: image file is truncated"),
    "only-a-header": (saved(picture(), "JPEG")[:20], "not a JPEG or PNG image"),
    "truncated-png": (saved(picture(), "PNG")[:-4000], "damaged: image file is truncated"),
    "zeros-in-png": (saved(picture(), "PNG")[:200] + bytes(3000), "damaged: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_good_is_named_with_the_reason(case: str, folder: Path) -> None:
    content, reason = BROKEN[case]
    (folder / "a" / "bad.jpg").write_bytes(content)
    with pytest.raises(WorkloadError) as caught:
        images.inspect(folder)

    message = str(caught.value)
    assert "1 of 5 image files cannot be used" in message
    assert f"a/bad.jpg: {reason}" in message
    assert "replace or remove" in message


@pytest.mark.parametrize("case", BROKEN)
def test_reading_such_a_file_says_so_too(case: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(BROKEN[case][0])
    with pytest.raises(WorkloadError, match=r"bad\.jpg cannot be decoded"):
        images.read(path, 64)


def test_a_dangling_link_is_named(folder: Path) -> None:
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(WorkloadError, match=r"gone\.png: no such file"):
        images.inspect(folder)


def test_of_many_bad_files_the_first_few_are_named(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"")

    with pytest.raises(WorkloadError) as caught:
        images.inspect(tmp_path)

    message = str(caught.value)
    assert "12 of 12 image files" in message
    assert "04.jpg: empty file" in message
    assert "05.jpg" not in message
    assert "and 7 more" in message


def test_beyond_the_cap_the_others_get_their_headers_read(tmp_path: Path) -> None:
    whole = saved(picture(20, 20), "PNG")
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(whole)

    assert images.inspect(tmp_path, most_decoded=5).decoded == 5
    (tmp_path / "9.png").write_bytes(whole[:-40])  # its header is sound, and it is not among the five
    images.inspect(tmp_path, most_decoded=5)
    (tmp_path / "9.png").write_bytes(b"no header")
    with pytest.raises(WorkloadError, match=r"9\.png"):
        images.inspect(tmp_path, most_decoded=5)

    (tmp_path / "9.png").write_bytes(whole)
    (tmp_path / "2.png").write_bytes(whole[:-40])  # this one is
    with pytest.raises(WorkloadError, match=r"2\.png: damaged"):
        images.inspect(tmp_path, most_decoded=5)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (256, 256), (231, 1003), (500, 57)])
def test_preparation_is_mlperfs(size: tuple[int, int], tmp_path: Path) -> None:
    """Against torchvision's own transforms, which MLPerf's reference calls."""
    picture(*size).save(tmp_path / "x.png")
    image = functional.resize(Image.open(tmp_path / "x.png"), 256)
    tensor = functional.to_tensor(functional.center_crop(image, [224, 224]))
    expected = functional.normalize(tensor, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

    got = images.read(tmp_path / "x.png", 224)
    assert got.shape == (224, 224, 3)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.permute(1, 2, 0).numpy(), atol=1e-5)


def test_the_small_size_scales_in_proportion(tmp_path: Path) -> None:
    assert images.short_side(224) == 256
    assert images.short_side(64) == 73
    picture(300, 200).save(tmp_path / "x.jpg")
    assert images.read(tmp_path / "x.jpg", 64).shape == (64, 64, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_pngs_of_every_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    picture().convert(mode).save(tmp_path / "x.png")
    images.inspect(tmp_path)
    got = images.read(tmp_path / "x.png", 64)
    assert got.shape == (64, 64, 3)
    assert np.isfinite(got).all()


def test_a_transparent_palette_becomes_rgb(tmp_path: Path) -> None:
    picture().convert("P").save(tmp_path / "x.png", transparency=bytes(range(256)))
    assert images.read(tmp_path / "x.png", 64).shape == (64, 64, 3)


def test_grey_is_the_same_in_all_channels(tmp_path: Path) -> None:
    picture().convert("L").save(tmp_path / "x.png")
    got = images.read(tmp_path / "x.png", 64)
    pixels = got * np.float32([0.229, 0.224, 0.225]) + np.float32([0.485, 0.456, 0.406])
    np.testing.assert_allclose(pixels[..., 0], pixels[..., 1], atol=1e-6)
    np.testing.assert_allclose(pixels[..., 0], pixels[..., 2], atol=1e-6)


def test_sixteen_bits_keep_their_shades(tmp_path: Path) -> None:
    shades = np.tile(np.linspace(0, 65535, 128, dtype=np.uint16), (128, 1))
    Image.fromarray(shades).save(tmp_path / "deep.png")
    Image.fromarray((shades >> 8).astype(np.uint8)).save(tmp_path / "flat.png")
    deep, flat = images.read(tmp_path / "deep.png", 64), images.read(tmp_path / "flat.png", 64)
    assert np.abs(deep - flat).max() < 0.05


def test_cmyk_jpegs_become_rgb(tmp_path: Path) -> None:
    rgb = picture(200, 200)
    rgb.save(tmp_path / "rgb.jpg", quality=95)
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    images.inspect(tmp_path)
    got, expected = images.read(tmp_path / "cmyk.jpg", 64), images.read(tmp_path / "rgb.jpg", 64)
    assert np.abs(got - expected).mean() < 0.2


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    upright = picture(200, 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° to the right to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    np.testing.assert_array_equal(
        images.read(tmp_path / "turned.png", 64), images.read(tmp_path / "upright.png", 64)
    )


def test_the_jpeg_of_telephones_is_a_jpeg(tmp_path: Path) -> None:
    picture().save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[picture(seed=1)])
    assert images.inspect(tmp_path).decoded == 1
    assert images.read(tmp_path / "x.jpg", 64).shape == (64, 64, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow says so in the worker's log
@pytest.mark.parametrize("content", [b"II*\x00" + bytes([255]) * 12, b"II*\x00\x08\x00", b"no TIFF header"])
def test_damaged_exif_does_not_damn_the_picture(content: bytes, tmp_path: Path) -> None:
    plain = saved(picture(), "JPEG")
    exif = b"Exif\x00\x00" + content
    marker = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "plain.jpg").write_bytes(plain)
    (tmp_path / "damaged.jpg").write_bytes(plain[:2] + marker + plain[2:])
    images.inspect(tmp_path)
    np.testing.assert_array_equal(
        images.read(tmp_path / "damaged.jpg", 64), images.read(tmp_path / "plain.jpg", 64)
    )


def test_the_launcher_can_inspect_without_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from workloads import images\n"
        "assert 'PIL' not in sys.modules\n"
        "images.inspect(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
