"""One picture of every kind, from a file as people have them to the pixels that a network takes."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.pictures import PictureError, converted, read_picture

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
RAMP = np.repeat(np.arange(28, dtype=np.uint8)[None] * 9, 28, axis=0)  # dark on the left, bright on the right


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def saved(tmp_path):
    """A function that saves an image under a name and reads it again as a network takes it."""
    def save(image: Image.Image, name: str = "a.png", shape=GREY, **options):
        image.save(tmp_path / name, **options)
        return read_picture(tmp_path / name, shape)

    return save


def test_picture_that_fits_keeps_every_pixel(saved):
    picture = saved(Image.fromarray(RAMP))
    assert np.array_equal(picture.pixels, RAMP)
    assert (picture.size, picture.is_colour, picture.quirks) == ((28, 28), False, ())
    image = photo(32, 32)
    picture = saved(image, shape=COLOUR)
    assert np.array_equal(picture.pixels, np.asarray(image))
    assert picture.is_colour


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_every_mode_becomes_grey_or_colour_as_the_network_takes_it(mode, shape):
    image = photo(40, 40).convert("L")
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    assert image.mode == mode
    picture = converted(image, shape)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape == ((28, 28) if shape == GREY else (32, 32, 3))
    assert not picture.is_colour, "grey, however it is stored"


def test_reduced_picture_is_smoothed_and_not_a_few_of_its_pixels():
    """A fine chequerboard is grey from afar; picking pixels would leave it black and white."""
    fine = Image.fromarray(np.indices((280, 280)).sum(0).astype(np.uint8) % 2 * 255)
    pixels = converted(fine, GREY).pixels[2:-2, 2:-2]
    assert abs(pixels.astype(int) - 127).max() < 10


@pytest.mark.parametrize("width, height, bars", [(56, 28, "rows"), (28, 56, "columns"), (900, 1, "rows")])
def test_other_proportions_are_kept_by_bars_in_the_borders_colour(width, height, bars):
    pixels = np.full((height, width, 3), (200, 20, 20), np.uint8)
    if height > 1:
        pixels[8:20, 8:20] = (20, 200, 20)
    picture = converted(Image.fromarray(pixels), COLOUR)
    assert picture.size == (width, height)
    first = picture.pixels[0] if bars == "rows" else picture.pixels[:, 0]
    assert (first == (200, 20, 20)).all()
    if height > 1:
        green = (picture.pixels[..., 1] > picture.pixels[..., 0]).nonzero()
        rows, columns = (np.ptp(places) + 1 for places in green)
        assert abs(rows - columns) <= 1, "a square stays one"


@pytest.mark.parametrize("orientation, turn", [(3, 2), (6, 3), (8, 1)])
def test_photo_is_turned_as_its_exif_says(orientation, turn, saved):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = saved(Image.fromarray(RAMP), exif=exif)
    assert np.array_equal(picture.pixels, np.rot90(RAMP, turn))
    assert picture.quirks == ("turned",)
    wide = saved(photo(40, 20), exif=exif)
    assert wide.size == ((40, 20) if orientation == 3 else (20, 40))


def test_transparency_becomes_white_and_an_opaque_alpha_channel_is_no_remark(saved):
    image = photo(28, 28).convert("RGBA")
    assert saved(image).quirks == ()
    image.putalpha(Image.fromarray(RAMP // 250 * 255))  # opaque at the right edge alone
    image.paste((0, 0, 0, 0), (0, 0, 14, 28))
    picture = saved(image)
    assert picture.quirks == ("transparent",)
    assert (picture.pixels[:, :14] == 255).all()
    palette = photo(28, 28).quantize(8)
    picture = saved(palette, "a.gif", transparency=0)
    assert picture.quirks == ("transparent",)


def test_of_16_bits_the_upper_8_stay(saved):
    picture = saved(Image.fromarray(RAMP.astype(np.uint16) * 256 + 255))
    assert np.array_equal(picture.pixels, RAMP)
    assert picture.quirks == ("16 bits",)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_several_frames_the_first_counts(name, saved):
    first, second = Image.fromarray(RAMP), Image.fromarray(255 - RAMP)
    options = {"lossless": True} if name == "a.webp" else {}
    picture = saved(first, name, save_all=True, append_images=[second], **options)
    assert abs(picture.pixels.astype(int) - RAMP).max() <= 2
    assert picture.quirks == ("several frames",)


def test_large_jpeg_looks_like_the_same_picture_in_png(saved):
    image = photo(12, 9).resize((2400, 1800), Image.Resampling.BICUBIC)
    jpeg, png = saved(image, "a.jpg", COLOUR, quality=95), saved(image, "a.png", COLOUR)
    assert jpeg.size == png.size == (2400, 1800)
    assert abs(jpeg.pixels.astype(int) - png.pixels).mean() < 2


def test_grey_jpeg_saved_in_colour_counts_as_grey_and_a_little_colour_as_colour(saved):
    grey = photo(28, 28).convert("L").convert("RGB")
    assert not saved(grey, "a.jpg").is_colour
    grey.putpixel((3, 3), (90, 92, 91))
    assert not saved(grey, "a.png").is_colour
    grey.putpixel((3, 3), (90, 90, 160))
    assert saved(grey, "a.png").is_colour


DAMAGES = {
    "nothing.png": lambda whole: b"",
    "text.png": lambda whole: b"no picture at all",
    "cut.png": lambda whole: whole[:len(whole) // 2],
    "head.png": lambda whole: whole[:30],
    "page.html": lambda whole: b"<html></html>",
    "program.eps": lambda whole: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_file_that_cannot_be_read_is_refused_by_its_name(name, tmp_path):
    photo(28, 28).save(tmp_path / "whole.png")
    (tmp_path / name).write_bytes(DAMAGES[name]((tmp_path / "whole.png").read_bytes()))
    with pytest.raises(PictureError) as refusal:
        read_picture(tmp_path / name, GREY)
    assert str(refusal.value).startswith(str(tmp_path / name))
    if not name.endswith(".png"):
        assert "is no picture that can be read; expected PNG, JPEG" in str(refusal.value), "not even tried"
    assert issubclass(PictureError, EffcnnError)


def test_missing_file_and_floats_are_refused(tmp_path):
    with pytest.raises(PictureError, match=r"gone\.png cannot be read \(No such file or directory\)"):
        read_picture(tmp_path / "gone.png", GREY)
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(PictureError, match=r"a\.tif.*floats of an unknown range"):
        read_picture(tmp_path / "a.tif", GREY)


def test_pillows_warnings_are_not_the_learners(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    photo(40, 40).save(tmp_path / "large.png")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert read_picture(Path(tmp_path / "large.png"), GREY).size == (40, 40)
        with pytest.raises(PictureError, match="exceeds limit"):
            photo(60, 60).save(tmp_path / "larger.png")
            read_picture(tmp_path / "larger.png", GREY)
    assert not warned
