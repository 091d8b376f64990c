"""Builders of image files: valid ones of many kinds, damaged ones, and hostile ones."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from io import BytesIO
from typing import Any

from PIL import Image, ImageCms, PngImagePlugin

GREY_STOPS = 65536


def gradient(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Return an image that is neither empty nor of one colour."""
    return Image.linear_gradient("L").resize(size).convert(mode)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(format: str, mode: str = "RGB", size: tuple[int, int] = (64, 48), **more: Any) -> bytes:
    return encoded(gradient(mode, size), format, **more)


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100)


def with_alpha(format: str) -> bytes:
    image = gradient("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return encoded(image, format)


def transparent_palette(format: str) -> bytes:
    """Index 0 of the palette, the left half, is transparent."""
    image = Image.new("P", (64, 48), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 32, 48))
    return encoded(image, format, transparency=0)


def exif_rotated() -> bytes:
    """A JPEG of 64 x 48 stored pixels that is to be shown as 48 x 64 (EXIF orientation 6)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("JPEG", exif=exif)


def jpeg_with_app_data(least: int = 200_000) -> bytes:
    """A JPEG whose frame header comes after more than 64 KiB of APP segments."""
    plain = picture("JPEG")
    segment = b"\xff\xed" + struct.pack(">H", 65533) + bytes(65531)
    return plain[:2] + segment * (least // 65533 + 1) + plain[2:]


def jpeg_app_bomb() -> bytes:
    """A JPEG that hides dimensions of 60000 x 60000 behind 200 KB of APP segments."""
    content = jpeg_with_app_data()
    at = content.index(b"\xff\xc0")
    return content[: at + 5] + struct.pack(">HH", 60_000, 60_000) + content[at + 9 :]


def ycck_jpeg() -> bytes:
    """A CMYK JPEG whose Adobe segment declares YCCK (transform 2)."""
    content = bytearray(picture("JPEG", "CMYK"))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


def with_profile(format: str, profile: bytes) -> bytes:
    return picture(format, icc_profile=profile)


@cache
def swapped_profile() -> bytes:
    """sRGB with its red and blue columns exchanged: what is stored as red is blue."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", content, 128)[0]
    tags = {bytes(content[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    content[red : red + 4], content[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(content)


@cache
def large_jpeg() -> bytes:
    """108 megapixels, as phones make them."""
    return encoded(Image.new("RGB", (12_000, 9_000), "teal"), "JPEG", quality=30)


def grey_16(format: str, peak: int = 4095) -> bytes:
    """16-bit grey whose values end at `peak`, as a 12-bit sensor makes them."""
    ramp = b"".join(struct.pack("<H", x * peak // 63) for x in range(64)) * 48
    return encoded(Image.frombytes("I;16", (64, 48), ramp), format)


def grey_16_full(format: str) -> bytes:
    return grey_16(format, 65535)


def float_tiff() -> bytes:
    return encoded(gradient("F"), "TIFF")


def int32_tiff() -> bytes:
    return encoded(gradient("I"), "TIFF")


def big_endian_16_tiff() -> bytes:
    """A big-endian TIFF of 16-bit grey, written by hand."""
    width, height = 64, 48
    pixels = b"".join(struct.pack(">H", x * 1023) for x in range(width)) * height
    entries = (
        (256, 4, 1, struct.pack(">I", width)),
        (257, 4, 1, struct.pack(">I", height)),
        (258, 3, 1, struct.pack(">HH", 16, 0)),
        (259, 3, 1, struct.pack(">HH", 1, 0)),
        (262, 3, 1, struct.pack(">HH", 1, 0)),
        (273, 4, 1, struct.pack(">I", 8)),
        (277, 3, 1, struct.pack(">HH", 1, 0)),
        (278, 4, 1, struct.pack(">I", height)),
        (279, 4, 1, struct.pack(">I", len(pixels))),
    )
    directory = b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries)
    directory = struct.pack(">H", len(entries)) + directory + bytes(4)
    return b"MM\0*" + struct.pack(">I", 8 + len(pixels)) + pixels + directory


def tiff_bomb(big: bool = False) -> bytes:
    """A TIFF whose directory, at its very end and beyond 64 KiB, claims 60000 x 60000 pixels."""
    strip = bytes(100_000)
    values = ((256, 60_000), (257, 60_000), (258, 8), (259, 1), (262, 1), (273, 16), (277, 1))
    values += ((278, 60_000), (279, len(strip)))
    if big:
        rows = b"".join(struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in values)
        directory = struct.pack("<Q", len(values)) + rows + bytes(8)
        return b"II+\0" + struct.pack("<HHQ", 8, 0, 16 + len(strip)) + strip + directory
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values)
    directory = struct.pack("<H", len(values)) + rows + bytes(4)
    return b"II*\0" + struct.pack("<I", 16 + len(strip)) + bytes(8) + strip + directory


def second_frame_bomb() -> bytes:
    """A TIFF of two pages: the first small, the second claiming 60000 x 60000 pixels."""
    pages = [gradient(), gradient()]
    content = bytearray(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    at = (
        content.rindex(struct.pack("<HHI", 256, 4, 1))
        if struct.pack("<HHI", 256, 4, 1) in content
        else content.rindex(struct.pack("<HHI", 256, 3, 1))
    )
    content[at : at + 24] = struct.pack("<HHIIHHII", 256, 4, 1, 60_000, 257, 4, 1, 60_000)
    return bytes(content)


def multi_page_tiff() -> bytes:
    return encoded(gradient(), "TIFF", save_all=True, append_images=[gradient("L"), gradient()])


def raw_of(maker: bytes, extra: bytes = b"") -> bytes:
    """A camera's raw file in a TIFF: a compressed sensor image that no TIFF reader knows."""
    values = ((256, 4000), (257, 3000), (258, 14), (259, 34713), (262, 32803), (273, 4096))
    values += ((277, 1), (278, 3000), (279, 4096))
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values)
    make = struct.pack("<HHII", 271, 2, len(maker), 2048)
    directory = struct.pack("<H", len(values) + 1) + rows[:60] + make + rows[60:] + bytes(4)
    head = b"II*\0" + struct.pack("<I", 16) + extra.ljust(8, b"\0") + directory
    return head.ljust(2048, b"\0") + maker.ljust(2048, b"\0") + bytes(range(256)) * 16


def canon_cr2() -> bytes:
    return raw_of(b"Canon\0", b"CR\x02\0")


def nikon_nef() -> bytes:
    return raw_of(b"NIKON CORPORATION\0")


def adobe_dng() -> bytes:
    """A DNG: a TIFF with the tag DNGVersion (50706)."""
    content = bytearray(raw_of(b"Google\0"))
    count = struct.unpack_from("<H", content, 16)[0]
    end = 18 + 12 * count
    content[16:18] = struct.pack("<H", count + 1)
    content[end : end + 12] = struct.pack("<HHI4B", 50706, 1, 4, 1, 4, 0, 0)
    return bytes(content)


def png_bomb() -> bytes:
    return png_of((60_000, 60_000))


def png_of(size: tuple[int, int], *before: bytes) -> bytes:
    """A PNG with this header, these chunks, and next to no pixels."""
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    body = (png_chunk(b"IHDR", header), *before, png_chunk(b"IDAT", zlib.compress(bytes(1000))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png_with_text(size: int = 3_000_000) -> bytes:
    """A PNG with a compressed text chunk that unpacks to 3 MB, as editors write them."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type xmp", "a" * size, zip=True)
    return picture("PNG", pnginfo=info)


def png_with_many_texts() -> bytes:
    """More text in all than Pillow takes by default (64 MiB)."""
    info = PngImagePlugin.PngInfo()
    for number in range(70):
        info.add_text(f"note {number}", "a" * 1_000_000, zip=True)
    return picture("PNG", pnginfo=info)


def apng() -> bytes:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green")]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])


def png_with_two_headers() -> bytes:
    """A PNG with two sizes, 64 x 48 and then 60000 x 60000; decoders use the last one."""
    second = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    return png_of((64, 48), second)


def ico_bomb() -> bytes:
    """An ICO whose directory declares 16 x 16 for a PNG of 60000 x 60000."""
    inside = png_bomb()
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def mpo_bomb() -> bytes:
    """An MPO whose second picture claims 60000 x 60000 pixels."""
    content = animated("MPO")
    at = content.index(b"\xff\xc0", content.index(b"\xff\xd9\xff\xd8"))
    return content[: at + 5] + struct.pack(">HH", 60_000, 60_000) + content[at + 9 :]


def rotated_grey_16_tiff() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("I;16", (64, 48), 1000), "TIFF", exif=exif)


def bmp_bomb() -> bytes:
    content = bytearray(picture("BMP"))
    content[18:26] = struct.pack("<ii", 60_000, 60_000)
    return bytes(content)


def top_down_bmp() -> bytes:
    content = bytearray(picture("BMP"))
    content[22:26] = struct.pack("<i", -48)
    return bytes(content)


def gif_bomb() -> bytes:
    content = bytearray(picture("GIF", "P"))
    content[6:10] = struct.pack("<HH", 60_000, 60_000)
    return bytes(content)


def webp_bomb() -> bytes:
    """A WebP that claims 16383 x 16383 pixels, the most that the format has."""
    content = bytearray(with_alpha("WEBP"))
    at = content.index(b"VP8X") + 12
    content[at : at + 6] = (16_382).to_bytes(3, "little") * 2
    return bytes(content)


def avif_bomb() -> bytes:
    """An AVIF whose `ispe` box claims 60000 x 60000 pixels."""
    content = bytearray(picture("AVIF"))
    at = content.index(b"ispe") + 8
    content[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    return bytes(content)


def jpeg_2000_bomb() -> bytes:
    content = bytearray(picture("JPEG2000"))
    at = content.index(b"ihdr") + 4
    content[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    return bytes(content)


def damaged(content: bytes, keep: float = 0.5) -> bytes:
    return content[: int(len(content) * keep)]


def brands(major: bytes, *compatible: bytes, then: bytes = b"") -> bytes:
    """An ISO base media file: the `ftyp` box, and something after it."""
    body = major + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body + then


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def heic(major: bytes = b"heic", *compatible: bytes) -> bytes:
    """The boxes of an HEIC file, with dimensions; its pixels are noise."""
    size = box(b"ispe", bytes(4) + struct.pack(">II", 4032, 3024))
    properties = box(b"iprp", box(b"ipco", size))
    meta = box(b"meta", bytes(4) + box(b"hdlr", bytes(8) + b"pict" + bytes(13)) + properties)
    media = box(b"mdat", bytes(range(256)) * 8)
    return brands(major, *(compatible or (b"mif1", b"heic")), then=meta + media)


def svg(body: str = "<circle r='4'/>") -> bytes:
    return f"<svg xmlns='http://www.w3.org/2000/svg'>{body}</svg>".encode()


def psd() -> bytes:
    return b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 48, 64, 8, 3) + bytes(4096)


def open_exr() -> bytes:
    return b"\x76\x2f\x31\x01\x02\0\0\0channels\0chlist\0" + bytes(512)


def jpeg_xl() -> bytes:
    return b"\xff\x0a" + bytes(range(200, 256)) * 8


def jpeg_xl_container() -> bytes:
    return b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"ftyp", b"jxl \0\0\0\0jxl ") + bytes(256)


def emf() -> bytes:
    return struct.pack("<II", 1, 108) + bytes(32) + b" EMF" + bytes(512)


def wmf() -> bytes:
    return b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\x01\0\x09\0\0\x03" + bytes(256)


def radiance() -> bytes:
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 48 +X 64\n" + bytes(range(256)) * 8


def dicom() -> bytes:
    return bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0" + bytes(512)


def xcf() -> bytes:
    return b"gimp xcf v011\0" + struct.pack(">III", 64, 48, 0) + bytes(512)
