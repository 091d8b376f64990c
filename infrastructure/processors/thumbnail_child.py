"""Decoder that makes thumbnails; it runs in the sandbox of `decoder_server`."""

from __future__ import annotations

from io import BytesIO
from typing import IO

from PIL import AvifImagePlugin, Image, ImageOps, UnidentifiedImageError

from infrastructure.processors.decoder_server import Answer, Order

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")  # never one that runs a program


def prepare() -> None:
    """Load the decoders, which a child could not: it can open nothing."""
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a child can start no threads either


def make(source: IO[bytes], order: Order) -> tuple[Answer, bytes]:
    """Return the thumbnail's and the image's sizes and the thumbnail, or what is wrong."""
    try:
        return _make(source, order)
    except UnidentifiedImageError:
        return {"broken": "it is no image that can be read"}, b""
    except Image.DecompressionBombError as error:
        return {"broken": str(error)}, b""
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return {"broken": str(error)}, b""  # how Pillow reports truncated and malformed files


def _make(source: IO[bytes], order: Order) -> tuple[Answer, bytes]:
    Image.MAX_IMAGE_PIXELS = None  # judged below, before anything is unpacked
    with Image.open(source, formats=FORMATS) as image:
        width, height = image.size
        if width * height > order["pixels"]:
            told = f"{width} x {height} pixels are more than {order['pixels']}"
            return {"broken": told}, b""
        side = order["side"]
        image.draft("RGB", (side, side))  # lets a JPEG be unpacked at an eighth of its size
        image.thumbnail((side, side), Image.Resampling.BILINEAR)
        turned = ImageOps.exif_transpose(image)
        plain = turned.convert("RGBA" if turned.has_transparency_data else "RGB")
        target = BytesIO()
        plain.save(target, "WEBP", quality=order["quality"], method=2)
        if target.tell() > order["bytes"]:
            return {"limit": f"its thumbnail has more than {order['bytes']} bytes"}, b""
        return {"made": [plain.width, plain.height], "of": [width, height]}, target.getvalue()
