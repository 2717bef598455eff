"""Pictures out of bytes that anybody may have sent: what is read is on a list, and its size is known before it is.

TIFF is not on the list: its many codecs and sizes inside sizes are more than a picture needs. Nor are run lengths in a
BMP, or a JPEG of very many scans: both let a few bytes ask for seconds.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
EXPECTED = "expected JPEG, PNG, WebP, GIF or BMP"
MAX_SIDE = 16_384  # pixels
MAX_SCANS = 100  # of a JPEG, each of which goes over every pixel; usual ones have ten
ORIENTATION = 0x0112  # EXIF's
LARGE_PIXELS = 1_000_000

# Large pictures are in memory one at a time, however many callers send some at once; and in one thread, since the C
# library keeps for each thread what it once allocated there.
_large = ThreadPoolExecutor(1, "large-pictures")


def check(data: Any, max_pixels: int) -> None:
    """Raises `InvalidInput` for what is no picture, or one of too many pixels. Only its head is read."""
    with _opened(data) as picture:
        width, height = picture.size
        if max(width, height) > MAX_SIDE:
            raise InvalidInput(f"is a picture of {width} × {height} pixels; at most {MAX_SIDE} on each side are read")
        if width * height > max_pixels:
            most = f"at most {max_pixels} are read (MAX_IMAGE_PIXELS)"
            raise InvalidInput(f"is a picture of {width} × {height} = {width * height} pixels; {most}")


def read(data: Any, mode: str, use: Callable[[Image], np.ndarray]) -> np.ndarray:
    """What ``use`` makes of the first picture in ``data``, upright as it is meant to be seen, in ``mode`` (RGB or L).

    Raises `InvalidInput` where it is broken or cut off, or what ``use`` raises.
    """
    with _opened(data) as picture:
        large = picture.width * picture.height > LARGE_PIXELS
    return _large.submit(_read, data, mode, use).result() if large else _read(data, mode, use)


def _read(data: Any, mode: str, use: Callable[[Image], np.ndarray]) -> np.ndarray:
    with _opened(data) as picture, contextlib.closing(picture):
        with _readable():
            picture.load()
        with contextlib.closing(_in_mode(_upright(picture), mode)) as made:
            return use(made)


@contextlib.contextmanager
def _opened(data: Any) -> Iterator[Image]:
    if not data:
        raise InvalidInput(f"is empty; {EXPECTED}")
    pillow = _pillow()
    with _readable():
        picture = pillow.open(io.BytesIO(data), formats=FORMATS)
    with picture:
        if picture.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
            raise InvalidInput(f"is a JPEG of more than {MAX_SCANS} scans")
        if any(tile[0] == "bmp_rle" for tile in getattr(picture, "tile", ())):
            raise InvalidInput("is a BMP with run lengths, which is not read")
        yield picture


@cache
def _pillow() -> Any:
    """Pillow, with the one format of ours that it does not register from the start, and without its warning of sizes
    that are beyond any limit of ours."""
    from PIL import Image, WebPImagePlugin  # noqa: F401

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    return Image


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Whatever Pillow raises of a broken picture, and that is any exception, concerns who sent it."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise InvalidInput("is a picture of far too many pixels") from None
    except UnidentifiedImageError:
        raise InvalidInput(f"is no picture that can be read; {EXPECTED}") from None
    except Exception:
        raise InvalidInput("is a broken picture") from None


def _upright(picture: Image) -> Image:
    """Turned as its camera says that it was held; what cannot be made out says nothing."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = None
    with contextlib.suppress(Exception):  # EXIF is a format of its own, and as often broken
        turn = turns.get(picture.getexif().get(ORIENTATION, 1))
    return picture if turn is None else picture.transpose(turn)


def _in_mode(picture: Image, mode: str) -> Image:
    if picture.mode == mode:
        return picture
    if picture.mode.startswith("I"):  # 16 bits, of which Pillow would cut off what is above 255
        from PIL import Image

        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    return picture.convert(mode)
