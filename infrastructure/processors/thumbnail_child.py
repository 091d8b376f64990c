"""Makes thumbnails in a process of its own: one child for each image, with limits, then gone.

Run as a script, on standard input and output, one JSON object a line. This process imports
the decoders once and never opens an image; for each it forks, which takes a few milliseconds
where a new interpreter takes two hundred. Whatever an image does to its child ends with it.
Imports nothing of Uptrail, so that it starts quickly and holds nothing worth stealing.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")  # never one that runs a program

Answer = dict[str, Any]


def main() -> None:
    Image.init()  # imports the decoders here, instead of in every child
    gc.freeze()  # a collection would copy the pages that the children share
    for line in sys.stdin:
        print(json.dumps(_in_child(json.loads(line))), flush=True)


def _in_child(order: dict[str, Any]) -> Answer:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_child(order, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return _killed(os.WTERMSIG(status), order)
    if not told:
        return {"failed": f"the thumbnail process ended with status {status}"}
    answer: Answer = json.loads(told)
    return answer


def _killed(number: int, order: dict[str, Any]) -> Answer:
    if number == signal.SIGXCPU:
        return {"limit": f"it takes more than {order['seconds']} s of processor time"}
    if number == signal.SIGXFSZ:
        return {"limit": "its thumbnail is too large"}
    return {"failed": f"the thumbnail process was killed by signal {number}"}


def _be_the_child(order: dict[str, Any], pipe: int) -> None:
    """Never returns: the child ends without running anything that the parent has set up."""
    try:
        _limit(order)
        answer = _answer(order)
    except MemoryError:
        answer = {"limit": f"it takes more than {order['memory']} bytes of memory"}
    except BaseException as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    try:
        os.write(pipe, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _limit(order: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (order["memory"], order["memory"]))
    resource.setrlimit(resource.RLIMIT_CPU, (order["seconds"], order["seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["bytes"], order["bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(order: dict[str, Any]) -> Answer:
    try:
        return _make(order)
    except UnidentifiedImageError:
        return {"broken": "it is no image that can be read"}
    except Image.DecompressionBombError as error:
        return {"broken": str(error)}
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return {"broken": str(error)}  # how Pillow tells of truncated and malformed files


def _make(order: dict[str, Any]) -> Answer:
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
    main()
