"""The corpus: one row for each file, with its true type and what every step makes of it.

Adding a case is adding a row. A verdict is "ok", "skipped: reason" or "refused: reason"; a reason
is a part of the message. A thumbnail that is made has its size as the verdict ("64 x 48").
`media_type` and `thumbnail` are judged with the default options, as the default pipeline does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from tests.corpus import archives as a
from tests.corpus import documents as d
from tests.corpus import images as i
from tests.corpus import media as m
from tests.corpus.images import picture

NO_PICTURE = "skipped: no picture can be made of"
NO_DECODER = "skipped: no picture can be made of"
NO_ARCHIVE = "skipped: it is no archive"
COMPRESSED = "skipped: it is compressed, and no archive"
TOO_MANY = "refused: pixels are more than"

OFFICE = "application/vnd.openxmlformats-officedocument."
OPEN_DOCUMENT = "application/vnd.oasis.opendocument."


class Row(msgspec.Struct, frozen=True):
    """A file's path, how it is made, its type, what it is declared as, and the verdicts."""

    path: str
    build: Callable[[], bytes]
    type: str
    declared: str | None = None
    media_type: str = "ok"
    thumbnail: str = NO_PICTURE
    archive: str = NO_ARCHIVE
    checksum: str = "ok"


def image(
    path: str, build: Callable[[], bytes], type: str, made: str = "64 x 48", **more: str
) -> Row:
    return Row(path, build, type, type, **{"thumbnail": made, **more})


def bomb(
    path: str, build: Callable[[], bytes], type: str, made: str = "skipped: pixels are more than"
) -> Row:
    return Row(path, build, type, type, TOO_MANY, made)


def binary(path: str, build: Callable[[], bytes], type: str, **more: str) -> Row:
    return Row(path, build, type, type, **more)


def packed(path: str, build: Callable[[], bytes], type: str, **more: str) -> Row:
    return Row(path, build, type, type, **{"archive": "ok", **more})


def text(path: str, content: bytes, type: str, declared: str | None = None) -> Row:
    return Row(path, lambda: content, type, declared or type)


HTML = b"<!DOCTYPE html><title>a</title><script>alert(1)</script>"
XHTML = b'<?xml version="1.0"?>\n<html xmlns="http://www.w3.org/1999/xhtml"><body/></html>'

IMAGES = (
    image("plain.jpg", partial(picture, "JPEG"), "image/jpeg"),
    image("progressive.jpg", partial(picture, "JPEG", progressive=True), "image/jpeg"),
    image("grey.jpg", partial(picture, "JPEG", "L"), "image/jpeg"),
    image("cmyk.jpg", partial(picture, "JPEG", "CMYK"), "image/jpeg"),
    image("ycck.jpg", i.ycck_jpeg, "image/jpeg"),
    image("rotated.jpg", i.exif_rotated, "image/jpeg", "48 x 64"),
    image("profile.jpg", lambda: i.with_profile("JPEG", i.swapped_profile()), "image/jpeg"),
    image("broken-profile.jpg", lambda: i.with_profile("JPEG", b"garbage" * 99), "image/jpeg"),
    image("app-data.jpg", i.jpeg_with_app_data, "image/jpeg"),
    image("108-megapixels.jpg", i.large_jpeg, "image/jpeg", "320 x 240"),
    image("two-pictures.mpo", partial(picture, "MPO"), "image/jpeg"),
    image("burst.jpg", partial(i.animated, "MPO"), "image/jpeg"),
    image("wide.jpg", partial(picture, "JPEG", size=(5000, 1)), "image/jpeg", "320 x 1"),
    image(
        "half.jpg",
        lambda: i.damaged(picture("JPEG", size=(640, 480))),
        "image/jpeg",
        "skipped: truncated",
    ),
    image("plain.png", partial(picture, "PNG"), "image/png"),
    image("alpha.png", partial(i.with_alpha, "PNG"), "image/png"),
    image("palette.png", partial(i.transparent_palette, "PNG"), "image/png"),
    image("bits.png", partial(picture, "PNG", "1"), "image/png"),
    image("grey-16.png", partial(i.grey_16, "PNG"), "image/png"),
    image("grey-16-full.png", partial(i.grey_16_full, "PNG"), "image/png"),
    image("profile.png", lambda: i.with_profile("PNG", i.swapped_profile()), "image/png"),
    image("text.png", i.png_with_text, "image/png"),
    image("texts.png", i.png_with_many_texts, "image/png"),
    image("animated.png", i.apng, "image/png"),
    image("tall.png", partial(picture, "PNG", size=(1, 5000)), "image/png", "1 x 320"),
    image("one.png", partial(picture, "PNG", size=(1, 1)), "image/png", "1 x 1"),
    image("half.png", lambda: i.damaged(picture("PNG", size=(640, 480))), "image/png", "skipped: "),
    image("head.png", lambda: picture("PNG")[:20], "image/png", "skipped: "),
    image("plain.gif", partial(picture, "GIF"), "image/gif"),
    image("animated.gif", partial(i.animated, "GIF"), "image/gif"),
    image("transparent.gif", partial(i.transparent_palette, "GIF"), "image/gif"),
    image("plain.webp", partial(picture, "WEBP"), "image/webp"),
    image("lossless.webp", partial(picture, "WEBP", lossless=True), "image/webp"),
    image("alpha.webp", partial(i.with_alpha, "WEBP"), "image/webp"),
    image("animated.webp", partial(i.animated, "WEBP"), "image/webp"),
    image("half.webp", lambda: i.damaged(picture("WEBP")), "image/webp", "skipped: "),
    image("plain.bmp", partial(picture, "BMP"), "image/bmp"),
    image("top-down.bmp", i.top_down_bmp, "image/bmp"),
    image("plain.tif", partial(picture, "TIFF"), "image/tiff"),
    image("packed.tif", partial(picture, "TIFF", compression="tiff_lzw"), "image/tiff"),
    image("jpeg.tif", partial(picture, "TIFF", compression="jpeg"), "image/tiff"),
    image("cmyk.tif", partial(picture, "TIFF", "CMYK"), "image/tiff"),
    image("lab.tif", partial(picture, "TIFF", "LAB"), "image/tiff"),
    image("float.tif", i.float_tiff, "image/tiff"),
    image("int-32.tif", i.int32_tiff, "image/tiff"),
    image("grey-16.tif", partial(i.grey_16, "TIFF"), "image/tiff"),
    image("grey-16-rotated.tif", i.rotated_grey_16_tiff, "image/tiff", "48 x 64"),
    image("grey-16-be.tif", i.big_endian_16_tiff, "image/tiff"),
    image("pages.tif", i.multi_page_tiff, "image/tiff"),
    image("big.tif", partial(picture, "TIFF", big_tiff=True), "image/tiff"),
    image("plain.avif", partial(picture, "AVIF"), "image/avif"),
    image("animated.avif", partial(i.animated, "AVIF"), "image/avif"),
    image("plain.jp2", partial(picture, "JPEG2000"), "image/jp2"),
    image("plain.j2k", partial(picture, "JPEG2000", no_jp2=True), "image/j2c"),
    image(
        "plain.ico", partial(picture, "ICO", size=(48, 48)), "image/vnd.microsoft.icon", "48 x 48"
    ),
    bomb("bomb.png", i.png_bomb, "image/png"),
    bomb("bomb-two-headers.png", i.png_with_two_headers, "image/png"),
    bomb("bomb.ico", i.ico_bomb, "image/vnd.microsoft.icon"),
    bomb("bomb-second-picture.mpo", i.mpo_bomb, "image/jpeg", "64 x 48"),
    bomb("bomb-in-app-data.jpg", i.jpeg_app_bomb, "image/jpeg"),
    bomb("bomb.gif", i.gif_bomb, "image/gif"),
    bomb("bomb.webp", i.webp_bomb, "image/webp"),
    bomb("bomb.bmp", i.bmp_bomb, "image/bmp"),
    bomb("bomb.tif", i.tiff_bomb, "image/tiff"),
    bomb("bomb-big.tif", partial(i.tiff_bomb, True), "image/tiff"),
    bomb("bomb-second-page.tif", i.second_frame_bomb, "image/tiff", "64 x 48"),
    bomb("bomb.avif", i.avif_bomb, "image/avif"),
    bomb("bomb.jp2", i.jpeg_2000_bomb, "image/jp2"),
    image("IMG_0001.CR2", i.canon_cr2, "image/x-canon-cr2", NO_DECODER),
    image("DSC_0001.NEF", i.nikon_nef, "image/x-nikon-nef", NO_DECODER),
    image("PXL_0001.dng", i.adobe_dng, "image/x-adobe-dng", NO_DECODER),
    image("IMG_0001.HEIC", i.heic, "image/heic", NO_DECODER),
    image(
        "burst.heics", partial(i.heic, b"hevc", b"msf1", b"hevc"), "image/heic-sequence", NO_DECODER
    ),
    image("plain.heif", partial(i.heic, b"mif1", b"mif1"), "image/heif", NO_DECODER),
    image("mif1.heic", partial(i.heic, b"mif1", b"mif1", b"heic"), "image/heic", NO_DECODER),
    image(
        "IMG_0002.CR3",
        lambda: i.brands(b"crx ", b"crx ", b"isom", then=bytes(999)),
        "image/x-canon-cr3",
        NO_DECODER,
    ),
    image("drawing.svg", i.svg, "image/svg+xml", NO_DECODER),
    image(
        "comment.svg",
        lambda: b"<?xml version='1.0'?>\n<!-- by hand -->\n" + i.svg(),
        "image/svg+xml",
        NO_DECODER,
    ),
    image("script.svg", partial(i.svg, "<script>alert(1)</script>"), "image/svg+xml", NO_DECODER),
    image("utf-16.svg", lambda: i.svg().decode().encode("utf-16"), "image/svg+xml", NO_DECODER),
    image("layers.psd", i.psd, "image/vnd.adobe.photoshop", NO_DECODER),
    image("bright.exr", i.open_exr, "image/x-exr", NO_DECODER),
    image("bright.hdr", i.radiance, "image/vnd.radiance", NO_DECODER),
    image("codestream.jxl", i.jpeg_xl, "image/jxl", NO_DECODER),
    image("container.jxl", i.jpeg_xl_container, "image/jxl", NO_DECODER),
    image("plain.qoi", partial(picture, "QOI"), "image/qoi", NO_DECODER),
    image("texture.dds", partial(picture, "DDS"), "image/vnd.ms-dds", NO_DECODER),
    image("plain.ppm", partial(picture, "PPM"), "image/x-portable-pixmap", NO_DECODER),
    image("grey.pgm", partial(picture, "PPM", "L"), "image/x-portable-graymap", NO_DECODER),
    image("icons.icns", partial(picture, "ICNS", size=(64, 64)), "image/icns", NO_DECODER),
    image("clip.emf", i.emf, "image/emf", NO_DECODER),
    image("clip.wmf", i.wmf, "image/wmf", NO_DECODER),
    image("gimp.xcf", i.xcf, "image/x-xcf", NO_DECODER),
    binary("scan.dcm", i.dicom, "application/dicom"),
    binary("book.djvu", d.djvu, "image/vnd.djvu"),
)

POSING = (
    Row(
        "empty.png",
        bytes,
        "application/x-empty",
        None,
        "refused: this is no image/png: it is empty",
    ),
    Row(
        "empty",
        bytes,
        "application/x-empty",
        "image/jpeg",
        "refused: this is no image/jpeg: it is empty",
    ),
    Row("page.jpg", lambda: HTML, "text/html", None, "refused: this is no image/jpeg"),
    Row(
        "program.gif",
        d.windows_program,
        "application/vnd.microsoft.portable-executable",
        "image/gif",
        "refused: this is no image/gif",
    ),
    Row("words.tif", lambda: b"II*does not", "text/plain", None, "refused: this is no image/tiff"),
    Row("IMG_0003.jpg", i.heic, "image/heic", "image/jpeg"),
    Row("a.png", partial(picture, "JPEG"), "image/jpeg", "image/png", thumbnail="64 x 48"),
    Row("empty.txt", bytes, "application/x-empty", "text/plain"),
    Row(
        "noise.bin",
        lambda: bytes(range(256)) * 16,
        "application/octet-stream",
        "application/octet-stream",
    ),
    Row(
        "noise.jpg",
        lambda: bytes(range(256)) * 16,
        "application/octet-stream",
        None,
        "refused: this is no image/jpeg",
    ),
)

MEDIA = (
    binary("song.mp3", m.mp3_with_id3, "audio/mpeg"),
    binary("tagged.flac", lambda: m.id3_tag() + m.flac(), "audio/flac"),
    binary("tagged.aac", lambda: m.id3_tag() + m.aac_adts(), "audio/aac"),
    binary("joined.mp3", lambda: bytes(range(1, 200)) + m.mp3_frames(), "audio/mpeg"),
    binary("joined.ts", lambda: m.mpeg_ts()[100:], "video/mp2t"),
    binary("voice.webm", partial(m.ebml, b"webm", b"A_OPUS"), "audio/webm"),
    binary("screen.webm", partial(m.ebml, b"webm", b"V_VP9 A_OPUS"), "video/webm"),
    binary("voice.mp4", partial(m.recorded, b"soun"), "audio/mp4"),
    binary("clip.mp4", partial(m.recorded, b"vide"), "video/mp4"),
    binary("bare.mp3", m.mp3_frames, "audio/mpeg"),
    binary("cut.mp3", m.mp3_padded, "audio/mpeg"),
    binary("mono.mp3", m.mp3_mono_22, "audio/mpeg"),
    binary("radio.mp2", m.mp2, "audio/mpeg"),
    binary("song.aac", m.aac_adts, "audio/aac"),
    binary("song.wav", m.wav, "audio/wav"),
    binary("big-endian.wav", lambda: b"RIFX" + m.wav()[4:], "audio/wav"),
    binary("song.flac", m.flac, "audio/flac"),
    binary("song.ogg", m.ogg_vorbis, "audio/ogg"),
    binary("song.opus", m.ogg_opus, "audio/ogg"),
    binary("song.oga", m.ogg_flac, "audio/ogg"),
    binary("song.aiff", m.aiff, "audio/aiff"),
    binary("song.au", m.au, "audio/basic"),
    binary("song.mid", m.midi, "audio/midi"),
    binary("note.amr", m.amr, "audio/amr"),
    binary("film.ac3", m.ac3, "audio/ac3"),
    binary("song.m4a", partial(m.iso_media, b"M4A ", b"isom", b"mp42"), "audio/mp4"),
    binary("film.mp4", partial(m.iso_media, b"isom", b"iso2", b"avc1", b"mp41"), "video/mp4"),
    binary("web.mp4", partial(m.iso_media, b"mp42", b"isom"), "video/mp4"),
    binary("dash.mp4", partial(m.iso_media, b"iso5", b"dash"), "video/mp4"),
    binary("film.m4v", partial(m.iso_media, b"M4V ", b"M4V ", b"mp42"), "video/x-m4v"),
    binary("clip.3gp", partial(m.iso_media, b"3gp4", b"3gp4"), "video/3gpp"),
    binary("clip.3g2", partial(m.iso_media, b"3g2a", b"3g2a"), "video/3gpp2"),
    binary("clip.mov", partial(m.iso_media, b"qt  ", b"qt  "), "video/quicktime"),
    binary("old.mov", m.mov_without_ftyp, "video/quicktime"),
    binary("first.mov", m.mov_moov_first, "video/quicktime"),
    binary("film.mkv", partial(m.ebml, b"matroska"), "video/matroska"),
    binary("film.webm", partial(m.ebml, b"webm"), "video/webm"),
    binary("film.avi", m.avi, "video/x-msvideo"),
    binary("tv.ts", m.mpeg_ts, "video/mp2t"),
    binary("camera.m2ts", partial(m.mpeg_ts, 192), "video/mp2t"),
    binary("dvd.mpg", m.mpeg_ps, "video/mpeg"),
    binary("raw.m1v", m.mpeg_es, "video/mpeg"),
    binary("film.flv", m.flv, "video/x-flv"),
    binary("film.wmv", m.asf, "video/x-ms-asf"),
    binary("film.ogv", m.ogg_theora, "video/ogg"),
)

DOCUMENTS = (
    binary("paper.pdf", d.pdf, "application/pdf"),
    binary("mailed.pdf", lambda: b"\r\n" + d.pdf(), "application/pdf"),
    binary("letter.rtf", d.rtf, "application/rtf"),
    binary("page.ps", d.postscript, "application/postscript"),
    binary("figure.eps", d.eps, "application/postscript"),
    packed("letter.docx", d.docx, f"{OFFICE}wordprocessingml.document"),
    packed("letter.docm", d.docm, "application/vnd.ms-word.document.macroenabled.12"),
    packed("table.xlsx", d.xlsx, f"{OFFICE}spreadsheetml.sheet"),
    packed("slides.pptx", d.pptx, f"{OFFICE}presentationml.presentation"),
    packed("types-last.docx", d.docx_types_last, f"{OFFICE}wordprocessingml.document"),
    packed(
        "other-order.docx",
        partial(d.docx, {"docProps/app.xml": b"<Properties/>"}),
        f"{OFFICE}wordprocessingml.document",
    ),
    packed("letter.odt", partial(d.with_mimetype, f"{OPEN_DOCUMENT}text"), f"{OPEN_DOCUMENT}text"),
    packed(
        "table.ods",
        partial(d.with_mimetype, f"{OPEN_DOCUMENT}spreadsheet"),
        f"{OPEN_DOCUMENT}spreadsheet",
    ),
    packed(
        "slides.odp",
        partial(d.with_mimetype, f"{OPEN_DOCUMENT}presentation"),
        f"{OPEN_DOCUMENT}presentation",
    ),
    packed("book.epub", partial(d.with_mimetype, "application/epub+zip"), "application/epub+zip"),
    packed("packed-by-hand.epub", d.epub_by_hand, "application/epub+zip"),
    packed("tool.jar", d.jar, "application/java-archive"),
    packed("app.apk", d.apk, "application/vnd.android.package-archive"),
    packed("place.kmz", d.kmz, "application/vnd.google-earth.kmz"),
    packed("page.xps", d.xps, "application/vnd.ms-xpsdocument"),
    binary("letter.doc", partial(d.compound, "WordDocument", "1Table"), "application/msword"),
    binary("table.xls", partial(d.compound, "Workbook"), "application/vnd.ms-excel"),
    binary(
        "slides.ppt", partial(d.compound, "PowerPoint Document"), "application/vnd.ms-powerpoint"
    ),
    binary(
        "mail.msg",
        partial(d.compound, "__properties_version1.0", "__nameid_version1.0"),
        "application/vnd.ms-outlook",
    ),
    binary(
        "setup.msi",
        partial(d.compound, "a", storage=bytes.fromhex("84100c0000000000c000000000000046")),
        "application/x-msi",
    ),
    binary("far.doc", partial(d.far_compound, "WordDocument"), "application/msword"),
    binary("other.ole", partial(d.compound, "Contents"), "application/x-ole-storage"),
    binary("notes.db", d.sqlite, "application/vnd.sqlite3"),
    binary("B.class", d.java_class, "application/java-vm"),
    binary("classes.dex", d.dex, "application/vnd.android.dex"),
    binary("tool", d.elf, "application/x-executable"),
    binary("tool.exe", d.windows_program, "application/vnd.microsoft.portable-executable"),
    binary("tool.dylib", d.mach_o, "application/x-mach-binary"),
    binary("code.wasm", d.wasm, "application/wasm"),
    binary("a.ttf", partial(d.font, b"\0\x01\0\0"), "font/ttf"),
    binary("a.otf", partial(d.font, b"OTTO"), "font/otf"),
    binary("a.woff", partial(d.woff, b"wOFF"), "font/woff"),
    binary("a.woff2", partial(d.woff, b"wOF2"), "font/woff2"),
    binary("rows.parquet", d.parquet, "application/vnd.apache.parquet"),
    binary("rows.avro", d.avro, "application/avro"),
    binary("rows.h5", d.hdf5, "application/x-hdf5"),
    binary("net.pcap", d.pcap, "application/vnd.tcpdump.pcap"),
    binary("old.swf", d.swf, "application/vnd.adobe.flash.movie"),
    binary("some.torrent", d.torrent, "application/x-bittorrent"),
)

ARCHIVES = (
    packed("plain.zip", a.plain_zip, "application/zip"),
    packed("empty.zip", a.empty_zip, "application/zip"),
    packed("streamed.zip", a.streamed_zip, "application/zip"),
    packed("plain.tar", a.tarred, "application/x-tar"),
    packed("plain.tar.gz", partial(a.tarred, a.NOTES, "gz"), "application/gzip"),
    packed("plain.tar.bz2", partial(a.tarred, a.NOTES, "bz2"), "application/x-bzip2"),
    packed("plain.tar.xz", partial(a.tarred, a.NOTES, "xz"), "application/x-xz"),
    binary("words.gz", a.gzipped, "application/gzip", archive=COMPRESSED),
    binary("words.bz2", a.bzipped, "application/x-bzip2", archive=COMPRESSED),
    binary("words.xz", a.xz, "application/x-xz", archive=COMPRESSED),
    binary("words.zst", a.zstandard, "application/zstd"),
    binary("words.lz4", a.lz4, "application/x-lz4"),
    binary("a.7z", a.seven_zip, "application/x-7z-compressed"),
    binary("four.rar", a.rar_4, "application/vnd.rar"),
    binary("five.rar", a.rar_5, "application/vnd.rar"),
    binary("a.cab", a.cabinet, "application/vnd.ms-cab-compressed"),
    binary(
        "a.deb", partial(a.ar_archive, b"debian-binary"), "application/vnd.debian.binary-package"
    ),
    binary("a.rpm", a.rpm, "application/x-rpm"),
    binary("a.cpio", a.cpio, "application/x-cpio"),
    binary("a.iso", a.iso_image, "application/x-iso9660-image"),
    packed("bomb.zip", a.zip_bomb, "application/zip", archive="refused: over 200 times as much"),
    packed(
        "slip.zip",
        lambda: d.zipped({"../../evil.txt": b"x"}),
        "application/zip",
        archive="refused: lies outside",
    ),
    packed("secret.zip", a.encrypted_zip, "application/zip", archive="refused: is encrypted"),
    packed("link.tar", a.symlink_out, "application/x-tar", archive="refused: lies outside"),
)

TEXTS = (
    text("notes.txt", b"plain words\n", "text/plain"),
    text("notes-utf-8.txt", "Grüße ☃\n".encode(), "text/plain"),
    text("notes-bom.txt", b"\xef\xbb\xbfplain words\n", "text/plain"),
    text("notes-utf-16.txt", "plain words ☃\n".encode("utf-16"), "text/plain"),
    text("notes-utf-16-be.txt", b"\xfe\xff" + "plain words\n".encode("utf-16-be"), "text/plain"),
    text("notes-latin-1.txt", "Grüße aus Köln\n".encode("latin-1"), "text/plain"),
    text("bitmap.txt", b"BM a note that begins like a bitmap", "text/plain"),
    text("main.ts", b"const x: number = 1;\n", "text/plain", "video/mp2t"),
    text("table.csv", b"id;name\n1;Ada\n2;Bob\n", "text/csv"),
    text(
        "excel.csv", b'\xef\xbb\xbfid,name\r\n1,"A, da"\r\n', "text/csv", "application/vnd.ms-excel"
    ),
    text("table.tsv", b"id\tname\n1\tAda\n", "text/tab-separated-values"),
    text("data.json", b'{"a": [1, 2, {"b": null}]}\n', "application/json"),
    text("long.json", b"[" + b'{"a": 1},\n' * 20_000 + b"{}]", "application/json"),
    text("lines.ndjson", b'{"a": 1}\n{"a": 2}\n', "application/x-ndjson"),
    text("notes.md", b"# Notes\n\n- words\n", "text/markdown"),
    text("config.yaml", b"a: 1\nb:\n  - c\n", "application/yaml"),
    text("style.css", b"body { color: teal }\n", "text/css"),
    text("script.js", b"const a = 1;\n", "text/javascript"),
    text("module.mjs", b"export const a = 1;\n", "text/javascript", "application/javascript"),
    text("script.py", b"#!/usr/bin/env python3\nprint(1)\n", "text/x-python"),
    text("script.sh", b"#!/bin/sh\nexit 0\n", "text/x-shellscript"),
    text("page.php", b"<?php echo 1; ?>\n", "text/x-php"),
    text("data.xml", b"<?xml version='1.0'?>\n<a/>", "application/xml", "text/xml"),
    text("served.html", XHTML, "text/html"),
    text(
        "README.md", b"<!-- badges -->\n<p align=center>\n\n# Notes\n", "text/html", "text/markdown"
    ),
    text("latin-1-served.html", XHTML + "<!-- Köln -->".encode("latin-1"), "text/html"),
    text("icon.xpm", b'/* XPM */\nstatic char *a[] = {"1 1 1 1"};\n', "image/x-xpixmap"),
    text("short-rows.csv", b"a,b,c,d\n1,2\n1,2,3\n1,2,3,4\n1,2,3\n1,2\n", "text/csv"),
    text("bank.csv", b"Account;1\n\n" + b"Day;Text;Sum\n" * 9 + b"Total\n", "text/csv"),
    text("prose.csv", b"Dear all,\n\nwe, who are here, write.\nYours\n", "text/plain", "text/csv"),
    text("feed.rss", b"<?xml version='1.0'?>\n<rss version='2.0'/>", "application/rss+xml"),
    text("page.html", HTML, "text/html"),
    text("space.html", b"\n\t  <html><body>a</body></html>", "text/html"),
    text("comment.html", b"<!-- a comment --><p>words", "text/html"),
    text("bom.html", b"\xef\xbb\xbf<html>", "text/html"),
    text("utf-16.html", HTML.decode().encode("utf-16"), "text/html"),
    text("control.html", b"<html>\x01\x00<script>alert(1)</script>", "text/html"),
    text("latin-1.html", "<html>Köln".encode("latin-1"), "text/html"),
    text("fragment.html", b"words <b>bold</b>\n", "text/html"),
    text("page.xhtml", XHTML, "application/xhtml+xml"),
    text("page.txt", HTML, "text/html", "text/plain"),
    text("script.txt", b"<script>alert(1)</script>", "text/html", "text/plain"),
    text("mail.eml", d.email(), "message/rfc822"),
    text("meeting.ics", d.calendar(), "text/calendar"),
    text("ada.vcf", d.vcard(), "text/vcard"),
)

ROWS = (*IMAGES, *POSING, *MEDIA, *DOCUMENTS, *ARCHIVES, *TEXTS)
