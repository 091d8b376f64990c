"""Decoder that makes thumbnails and measures images; it runs in the sandbox of `decoder_server`."""

from __future__ import annotations

import math
import re
import struct
from io import BytesIO
from typing import IO, Any

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    IcoImagePlugin,
    Image,
    ImageCms,
    PngImagePlugin,
    UnidentifiedImageError,
)

from infrastructure.processors.decoder_server import Answer, Order

ICON = "image/vnd.microsoft.icon"

# Formats by media type: those that the sniffer detects, never one that runs a program.
FORMATS: dict[str, tuple[str, ...]] = {
    "image/jpeg": ("JPEG",),  # also MPO, which Pillow finds out by itself
    "image/png": ("PNG",),
    "image/gif": ("GIF",),
    "image/webp": ("WEBP",),
    "image/bmp": ("BMP",),
    "image/tiff": ("TIFF",),
    "image/avif": ("AVIF",),
    ICON: ("ICO",),
    "image/jp2": ("JPEG2000",),
    "image/j2c": ("JPEG2000",),
}
MAX_PAGES = 1000  # pages of a TIFF or pictures of an MPO that are measured
MAX_TEXT_BYTES = 512 * 1024 * 1024  # bytes of text in a PNG; the limit of memory is lower
MAX_HEADER_BYTES = 1024 * 1024  # bytes in which a header claims a size
GENTLE = 32 * 1024 * 1024  # pixels up to which colours are made plain before they are scaled

ORIENTATION = 0x0112  # tag of EXIF
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BLANK = Image.new("RGB", (16, 16))
_TWICE: dict[str, Any] = {"save_all": True, "append_images": [_BLANK]}
_SAMPLES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("image/jpeg", "RGB", {}),
    ("image/jpeg", "CMYK", {}),
    ("image/jpeg", "RGB", {**_TWICE, "format": "MPO"}),
    ("image/png", "RGB", {}),
    ("image/png", "P", {"transparency": 0}),
    ("image/png", "I;16", {}),
    ("image/png", "RGB", _TWICE),
    ("image/gif", "P", {"transparency": 0}),
    ("image/gif", "RGB", _TWICE),
    ("image/webp", "RGBA", {"lossless": True}),
    ("image/webp", "RGB", _TWICE),
    ("image/bmp", "RGB", {}),
    ("image/tiff", "RGB", {"compression": "tiff_lzw"}),
    ("image/tiff", "RGB", {"compression": "jpeg"}),
    ("image/tiff", "F", {}),
    ("image/avif", "RGB", {"max_threads": 1, "speed": 10}),
    (ICON, "RGBA", {}),
    (ICON, "P", {"bitmap_format": "bmp"}),
    ("image/jp2", "RGB", {}),
)

Size = tuple[int, int]


def prepare() -> None:
    """Load the decoders, which a child could not: it can open nothing."""
    Image.init()
    ImageCms.createProfile("sRGB")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a child can start no threads either
    Image.MAX_IMAGE_PIXELS = None  # limited by the order, before decompression
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
    for media_type, mode, options in _SAMPLES:
        _practise(media_type, mode, options)


def _practise(media_type: str, mode: str, options: dict[str, Any]) -> None:
    """Make a thumbnail of a sample: Pillow imports much of itself only when it meets a format."""
    if mode in ("I;16", "F"):
        image = Image.new(mode, _BLANK.size)
    else:
        image = Image.linear_gradient("L").resize(_BLANK.size).convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more: dict[str, Any] = {"format": FORMATS[media_type][0], **options}
    if media_type in ("image/jpeg", "image/png", "image/tiff"):
        more |= {"exif": exif} | ({"icc_profile": profile} if mode == "RGB" else {})
    sample = BytesIO()
    try:
        image.save(sample, **more)
    except (OSError, KeyError):
        return  # this Pillow was built without the format
    order = {"type": media_type, "side": 8, "quality": 80, "pixels": 1024, "bytes": 65536}
    for decode in (measure, make):
        sample.seek(0)
        decode(sample, order)


def measure(source: IO[bytes], order: Order) -> Answer:
    """Return the `size` of the largest page or frame of an image; no pixel is unpacked."""
    sizes: list[Size] = []
    try:
        sizes += _claimed_sizes(source, order["type"])
        if order["type"] != ICON:
            with Image.open(source, formats=FORMATS[order["type"]]) as image:
                sizes += _sizes(image)
    except Exception as error:  # Pillow raises whatever a malformed file makes it meet
        if not sizes:
            return {"broken": _reason(error)}
    except MemoryError:
        if not sizes:
            raise
    if not sizes:
        return {"broken": "it is no image that can be read"}
    return {"size": max(sizes, key=math.prod)}


def make(source: IO[bytes], order: Order) -> tuple[Answer, bytes]:
    """Return the thumbnail's and the image's sizes and the thumbnail, or what is wrong."""
    try:
        claimed = max(_claimed_sizes(source, order["type"]), key=math.prod, default=(0, 0))
        if math.prod(claimed) > order["pixels"]:
            return {"broken": _too_many(claimed, order["pixels"])}, b""
        return _make(source, order)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever a malformed file makes it meet
        return {"broken": _reason(error)}, b""


def _make(source: IO[bytes], order: Order) -> tuple[Answer, bytes]:
    with Image.open(source, formats=FORMATS[order["type"]]) as image:
        size = image.size
        if math.prod(size) > order["pixels"]:
            return {"broken": _too_many(size, order["pixels"])}, b""
        profile = image.info.get("icc_profile")
        small = _scaled(image, order["side"])
        plain = _upright(_standard_colours(small, profile), _orientation(image))
        target = BytesIO()
        plain.save(target, "WEBP", quality=order["quality"], method=2, icc_profile=b"", exif=b"")
        if target.tell() > order["bytes"]:
            return {"limit": f"its thumbnail has more than {order['bytes']} bytes"}, b""
        return {"made": [plain.width, plain.height], "of": [*size]}, target.getvalue()


def _scaled(image: Image.Image, side: int) -> Image.Image:
    """Return the image scaled down into a square; its colours are averaged, not picked."""
    image.draft("RGB", (side, side))  # lets a JPEG be unpacked at an eighth of its size
    image.load()
    plain: Image.Image = image
    if image.mode.startswith("I") or image.mode == "F":
        plain = _eight_bit(image)
    elif image.mode in ("P", "PA", "1") and math.prod(image.size) <= GENTLE:
        plain = image.convert("RGBA" if image.has_transparency_data else "RGB")
    plain.thumbnail((side, side), Image.Resampling.BILINEAR)
    return plain


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return deep grey as 8 bits a pixel: scaled, where Pillow's conversion clips.

    Unsigned 16-bit samples use their whole range (TIFF 6.0 section 8, PNG section 13.12). Deeper
    ones have no range that is agreed on: one from 0 to 1 or to 255 or 65535 if they fit into it,
    else their own.
    """
    if image.mode.startswith("I;16"):  # 257 = 65535 / 255
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    low, high = _extremes(image)
    if low >= 0:
        known = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        if peak := next((peak for peak in known if high <= peak), None):
            low, high = 0.0, peak
    scale = 255.0 / (high - low) if high > low else 0.0
    return image.convert("F").point(lambda value: value * scale + (0.5 - low * scale)).convert("L")


def _extremes(image: Image.Image) -> tuple[float, float]:
    extremes: Any = image.getextrema()  # of the only band
    low, high = (float(value) for value in extremes)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("it has values that are no numbers")
    return low, high


def _standard_colours(image: Image.Image, profile: Any) -> Image.Image:
    """Return the image in sRGB, with an alpha channel if it needs one.

    A profile that is broken, or of another kind of pixels, is as good as none.
    """
    has_alpha = image.has_transparency_data
    if image.mode == "LAB":
        source: Any = ImageCms.createProfile("LAB")
    else:
        source = BytesIO(profile) if isinstance(profile, bytes) and profile else None
    if image.mode not in ("RGB", "RGBA", "L", "CMYK", "LAB"):
        image = image.convert("RGBA" if has_alpha else "RGB")
    if source is not None:
        try:
            standard = ImageCms.createProfile("sRGB")
            opened = source if image.mode == "LAB" else ImageCms.ImageCmsProfile(source)
            mode = "RGBA" if image.mode == "RGBA" else "RGB"
            converted = ImageCms.profileToProfile(image, opened, standard, outputMode=mode)
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return image.convert("RGBA" if has_alpha else "RGB")


def _orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation of a loaded image; broken EXIF data have none.

    Pillow rotates a TIFF when it loads it, and resets its orientation.
    """
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:
        return None


def _upright(image: Image.Image, orientation: Any) -> Image.Image:
    method = _TRANSPOSE.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _sizes(image: Image.Image) -> list[Size]:
    """Return the sizes of the pages of a TIFF, the pictures of an MPO, or the image."""
    sizes: list[Size] = [image.size]
    if image.format in ("TIFF", "MPO"):
        for page in range(1, MAX_PAGES):
            try:
                image.seek(page)
            except Exception:  # there is no further page, or it cannot be read
                break
            sizes.append(image.size)
    return sizes


def _claimed_sizes(source: IO[bytes], media_type: str) -> list[Size]:
    """Return the sizes in headers of formats whose decoder acts on them as soon as it is opened.

    It allocates the canvas (WebP), refuses the file (AVIF) or unpacks the pixels (ICO, whose
    directory may declare false sizes of its pictures). Sources: RFC 9649 section 2.7 (VP8X),
    ISO/IEC 23008-12 section 6.5.3 (`ispe`).
    """
    try:
        if media_type == ICON:
            return _icon_sizes(source)
        head = source.read(MAX_HEADER_BYTES)
        if media_type == "image/webp" and head[12:16] == b"VP8X":
            width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
            return [(width, height)]
        if media_type == "image/avif":
            boxes = [match.end() for match in re.finditer(rb"ispe\0\0\0\0", head)]
            return [struct.unpack_from(">II", head, at) for at in boxes if at + 8 <= len(head)]
        return []
    finally:
        source.seek(0)


def _icon_sizes(source: IO[bytes]) -> list[Size]:
    sizes: list[Size] = []
    for entry in IcoImagePlugin.IcoFile(source).entry[:MAX_PAGES]:
        source.seek(entry.offset)
        is_png = source.read(8) == b"\x89PNG\r\n\x1a\n"
        source.seek(entry.offset)
        try:
            if is_png:
                sizes.append(PngImagePlugin.PngImageFile(source).size)
            else:  # twice as high: a mask follows the picture
                width, height = BmpImagePlugin.DibImageFile(source).size
                sizes.append((width, height // 2))
        except Exception:  # one of its pictures cannot be read
            sizes.append(entry.dim)
    return sizes


def _too_many(size: Size, most: int) -> str:
    return f"{size[0]} x {size[1]} pixels are more than {most}"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image that can be read"
    return f"it cannot be read: {str(error)[:500] or type(error).__name__}"
