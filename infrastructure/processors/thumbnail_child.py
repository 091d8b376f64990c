"""Makes thumbnails in a process of its own: one child for each image, with limits, then gone."""

from __future__ import annotations

from PIL import Image, ImageOps, UnidentifiedImageError

from infrastructure.processors.forking import Answer, Order, serve

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")  # never one that runs a program


def answer(order: Order) -> Answer:
    """The thumbnail's and the image's sizes, or what is wrong with the image."""
    try:
        return _make(order)
    except UnidentifiedImageError:
        return {"broken": "it is no image that can be read"}
    except Image.DecompressionBombError as error:
        return {"broken": str(error)}
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return {"broken": str(error)}  # how Pillow tells of truncated and malformed files


def _make(order: Order) -> Answer:
    Image.MAX_IMAGE_PIXELS = None  # judged below, before anything is unpacked
    with Image.open(order["source"], formats=FORMATS) as image:
        width, height = image.size
        if width * height > order["pixels"]:
            return {"broken": f"{width} x {height} pixels are more than {order['pixels']}"}
        side = order["side"]
        image.draft("RGB", (side, side))  # lets a JPEG be unpacked at an eighth of its size
        image.thumbnail((side, side), Image.Resampling.BILINEAR)
        turned = ImageOps.exif_transpose(image)
        plain = turned.convert("RGBA" if turned.has_transparency_data else "RGB")
        plain.save(order["target"], "WEBP", quality=order["quality"], method=2)
        return {"made": [plain.width, plain.height], "of": [width, height]}


if __name__ == "__main__":
    Image.init()  # imports the decoders here, instead of in every child
    serve(answer)
