"""Image files of every kind become upright square uint8 pixels."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from ddpm_cli.errors import UserError
from ddpm_cli.media import image_files
from ddpm_cli.media.arrays import png
from ddpm_cli.media.base import DecodeError
from ddpm_cli.media.image_files import decode


def gradient(width, height):
    """RGB, red growing to the right and green downwards."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 90)], -1).astype(np.uint8))


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "ppm", "webp", "jpg", "gif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_common_formats(tmp_path, extension, channels):
    options = {"lossless": True} if extension == "webp" else {"quality": 98} if extension == "jpg" else {}
    pixels = decode(save(tmp_path / f"a.{extension}", gradient(16, 16), **options), channels, 16)
    expected = gradient(16, 16) if channels == 3 else gradient(16, 16).convert("L")
    assert pixels.shape == (channels, 16, 16) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    tolerance = {"jpg": 12, "gif": 12}.get(extension, 0)
    difference = pixels.astype(int) - np.asarray(expected).reshape(16, 16, channels).transpose(2, 0, 1)
    assert np.abs(difference).mean() <= tolerance


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (63, 32), (500, 300)])
def test_the_centre_square_is_kept(tmp_path, size):
    pixels = decode(save(tmp_path / "a.png", gradient(*size)), 3, 16).astype(int)
    side = min(size)
    image = gradient(*size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    expected = image.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(pixels - np.asarray(expected).transpose(2, 0, 1)).max() <= 6


def test_small_images_are_enlarged(tmp_path):
    pixels = decode(save(tmp_path / "a.png", Image.new("RGB", (1, 1), (9, 8, 7))), 3, 8)
    assert (pixels == np.array([9, 8, 7]).reshape(3, 1, 1)).all()


def test_scaled_decoding_of_large_jpegs_is_as_good_as_resampling_all_of_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    image = Image.fromarray(noise).resize((800, 800), Image.Resampling.BICUBIC)
    pixels = decode(save(tmp_path / "a.jpg", image, quality=95), 3, 32).astype(int)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(pixels - expected).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
    upright = gradient(16, 16)
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(save(tmp_path / "a.png", stored, exif=exif), 3, 16)
    assert np.array_equal(pixels, np.asarray(upright).transpose(2, 0, 1))


def test_transparency_lies_over_white(tmp_path):
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (0, 0, 4, 8))
    expected = np.full((3, 8, 8), 255)
    expected[1:, :, :4] = 0
    palette = clear.convert("RGB").quantize(4)
    palette.info["transparency"] = palette.getpixel((7, 7))
    for image in (clear, clear.convert("RGBA").quantize(4), palette):
        path = save(tmp_path / "a.png", image)
        assert np.array_equal(decode(path, 3, 8), expected)
    path = save(tmp_path / "a.png", Image.new("LA", (8, 8), (0, 0)))
    assert (decode(path, 1, 8) == 255).all()


def test_palettes_keep_their_colours_and_become_the_grey_of_those(tmp_path):
    path = save(tmp_path / "a.gif", Image.new("RGB", (8, 8), (255, 0, 0)).quantize(4))
    assert decode(path, 3, 8)[:, 0, 0].tolist() == [255, 0, 0]
    assert decode(path, 1, 8)[:, 0, 0].tolist() == [76]


def test_cmyk_becomes_colour(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("RGB", (8, 8), (250, 20, 20)).convert("CMYK"), quality=98)
    assert np.abs(decode(path, 3, 8)[:, 4, 4].astype(int) - [250, 20, 20]).max() < 6


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_sixteen_bits_are_rounded_to_eight(tmp_path, extension):
    wide = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    path = save(tmp_path / f"a.{extension}", Image.fromarray(wide))
    assert np.array_equal(decode(path, 1, 8)[0], np.rint(wide / 257).astype(np.uint8))
    assert decode(path, 3, 8).shape == (3, 8, 8)


def test_one_bit_images_are_black_and_white(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(np.eye(8) > 0))
    assert np.array_equal(decode(path, 1, 8)[0], np.eye(8) * 255)


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (50, 200)]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (decode(path, 1, 8) == 50).all()


def broken(tmp_path, kind):
    path = tmp_path / ("a.jpg" if kind == "truncated jpeg" else "a.png")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    if kind in ("truncated png", "truncated jpeg"):
        content = save(path, image).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "damaged png":
        content = bytearray(save(path, image).read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    elif kind == "header only":
        path.write_bytes(save(path, image).read_bytes()[:20])
    elif kind == "text":
        path.write_text("no image at all")
    elif kind == "empty":
        path.touch()
    elif kind == "dangling":
        os.symlink(tmp_path / "gone", path)
    elif kind == "floating point":
        path = tmp_path / "a.tiff"
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path)
    return path


@pytest.mark.parametrize("size", [64, 16])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated png", "trunc"),
        ("truncated jpeg", "trunc"),
        ("damaged png", "."),
        ("header only", "."),
        ("text", "not an image"),
        ("empty", "empty file"),
        ("dangling", "No such file"),
        ("floating point", "floating-point"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(tmp_path, kind, reason, size):
    with pytest.raises(DecodeError, match=reason):
        decode(broken(tmp_path, kind), 3, size)


def test_bytes_are_read_as_files_are(tmp_path):
    path = save(tmp_path / "a.jpg", gradient(40, 30))
    assert np.array_equal(decode(io.BytesIO(path.read_bytes()), 3, 8), decode(path, 3, 8))
    for content, reason in ((b"", "empty file"), (b"text", "not an image")):
        with pytest.raises(DecodeError, match=reason):
            decode(io.BytesIO(content), 3, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_in_colour_survive_writing_and_reading(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 7, channels)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(pixels))
    assert np.array_equal(decode(tmp_path / "a.png", channels, (9, 7), "uint16"), pixels.transpose(2, 0, 1))
    with Image.open(tmp_path / "a.png") as image:  # as any reader has it
        image.load()
        assert image.size == (7, 9) and image.mode in ("I;16", "RGB")


def test_eight_bits_are_spread_over_sixteen_and_grey_over_colours(tmp_path):
    path = save(tmp_path / "a.png", gradient(8, 8))
    assert np.array_equal(decode(path, 3, 8, "uint16"), decode(path, 3, 8).astype(int) * 257)
    grey = save(tmp_path / "b.png", gradient(8, 8).convert("L"))
    assert np.array_equal(decode(grey, 3, 8, "uint16"), decode(grey, 3, 8).astype(int) * 257)


def test_sixteen_bits_are_resampled_as_eight_are(tmp_path):
    path = save(tmp_path / "a.png", gradient(40, 24))
    wide, narrow = decode(path, 3, (12, 12), "uint16") / 257, decode(path, 3, (12, 12)).astype(float)
    assert np.abs(wide - narrow).max() < 2


def test_rounding_to_eight_bits_is_said(tmp_path, caplog):
    image_files._told_of_rounding.cache_clear()
    decode(save(tmp_path / "a.png", gradient(16, 16)), 3, 16)
    assert not caplog.text
    (tmp_path / "b.png").write_bytes(png(np.zeros((8, 8, 3), np.uint16)))
    for _ in range(2):
        decode(tmp_path / "b.png", 3, 8)
    assert caplog.text.count("dataset.dtype=uint16") == 1


@pytest.mark.parametrize("size", [(30, 20), (20, 30), (7, 64)])
def test_height_and_width_are_covered_by_the_middle(tmp_path, size):
    pixels = decode(save(tmp_path / "a.png", gradient(90, 60)), 3, size).astype(int)
    height, width = size
    scale = min(90 / width, 60 / height)
    box = (45 - scale * width / 2, 30 - scale * height / 2, 45 + scale * width / 2, 30 + scale * height / 2)
    expected = gradient(90, 60).resize((width, height), Image.Resampling.BICUBIC, box=box)
    assert pixels.shape == (3, height, width) and np.abs(pixels - np.asarray(expected).transpose(2, 0, 1)).max() <= 3


def test_heic_is_read_by_its_plugin(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason='needs pip install "ddpm_cli[heic]"')
    pillow_heif.from_pillow(gradient(64, 64)).save(tmp_path / "a.heic", quality=95)
    assert (
        np.abs(decode(tmp_path / "a.heic", 3, 64).astype(int) - np.asarray(gradient(64, 64)).transpose(2, 0, 1)).mean()
        < 6
    )


def test_heic_without_its_plugin_names_what_to_install(tmp_path, monkeypatch):
    image_files._register_heif.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.setattr(Image, "open", lambda _: (_ for _ in ()).throw(UnidentifiedImageError))
    with pytest.raises(UserError, match=r'pip install "ddpm_cli\[heic\]"'):
        decode(tmp_path / "a.heic", 3, 8)
