"""One picture, from a file or an array, as a network takes it: upright, opaque, resized, grey or in colour."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps, UnidentifiedImageError

from .datasets import DataError

# Left out on purpose: what Pillow reads by starting another program (EPS).
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
GREY_LEVELS = 3  # of 255: where no pixel's channels differ by more, a picture counts as grey
TURNED = range(2, 9)  # EXIF's orientations other than upright
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's names for 16 bits per pixel


class PictureError(DataError):
    """A file that is no picture, or a damaged one."""


@dataclass(frozen=True)
class Picture:
    """A converted picture. pixels: uint8 (H, W) or (H, W, 3). size: (width, height) before that, upright.

    is_colour: whether it shows any colour, however it is stored.
    quirks: what was mended on the way: "turned", "transparent", "16 bits", "several frames".
    """

    pixels: np.ndarray
    size: tuple[int, int]
    is_colour: bool
    quirks: tuple[str, ...] = ()


def read_picture(path: Path, image_shape: tuple[int, int, int]) -> Picture:
    """The picture in a file, converted. Raises PictureError, naming the file and what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata and of large pictures
            with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
                return converted(image, image_shape)
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is no picture that can be read; expected {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow names damage in a dozen ways
        cause = getattr(error, "strerror", None) or error
        raise PictureError(f"{path} cannot be read ({cause})") from error


def converted(image: Image.Image, image_shape: tuple[int, int, int]) -> Picture:
    """A picture as the network takes it, image_shape being (C, H, W).

    It is turned as its EXIF says, laid on white where it is transparent, resized as a whole with
    antialiasing and padded where its proportions are others (see `fitted`). Of 16 bits the upper
    8 stay, of several frames the first. Raises PictureError for floats, whose range is unknown.
    """
    channels, height, width = image_shape
    if image.mode == "F":
        raise PictureError("its pixels are floats of an unknown range; expected 8 or 16 bits")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    size = image.size if orientation < 5 else image.size[::-1]
    frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # MPO: a camera's JPEG with a preview
    image.draft("", (4 * width, 4 * height))  # a large JPEG is decoded at a smaller scale, many times faster
    image = ImageOps.exif_transpose(image)
    is_deep = image.mode in DEEP
    if is_deep:
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    image, is_transparent = opaque(image)
    image = fitted(image, width, height)
    quirks = {"turned": orientation in TURNED, "transparent": is_transparent, "16 bits": is_deep,
              "several frames": frames > 1}
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return Picture(pixels, size, shows_colour(image), tuple(quirk for quirk, there in quirks.items() if there))


def opaque(image: Image.Image) -> tuple[Image.Image, bool]:
    """(the picture in mode L or RGB, whether any of it was transparent); what was shows white paper."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        lowest = np.asarray(image.getchannel("A")).min()
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image).convert("RGB"), bool(lowest < 255)
    if image.mode in ("1", "L"):
        return image.convert("L"), False
    return image.convert("RGB"), False


def shows_colour(image: Image.Image) -> bool:
    """Whether the channels of any pixel differ by more than GREY_LEVELS, in a picture of mode L or RGB."""
    if image.mode == "L":
        return False
    red, green, blue = image.split()
    differences = ImageChops.difference(red, green), ImageChops.difference(green, blue)
    return bool(max(np.asarray(difference).max() for difference in differences) > GREY_LEVELS)


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The whole picture, as large as fits, in the middle; the bars beside it have its border's median colour."""
    scale = min(width / image.width, height / image.height)
    size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    if size == (width, height):
        return image
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    paper = np.median(border, axis=0).astype(np.uint8)
    canvas = np.broadcast_to(paper, (height, width, *pixels.shape[2:])).copy()
    down, right = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[down:down + size[1], right:right + size[0]] = pixels
    return Image.fromarray(canvas)
