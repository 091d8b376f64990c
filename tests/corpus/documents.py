"""Builders of documents, programs, fonts and data files."""

from __future__ import annotations

import sqlite3
import struct
import zipfile
from collections.abc import Mapping
from io import BytesIO
from tempfile import TemporaryDirectory

MAIN = "application/vnd.openxmlformats-officedocument."


def zipped(members: Mapping[str, bytes], stored: tuple[str, ...] = ("mimetype",)) -> bytes:
    """A zip file with these members in this order; those in `stored` are not compressed."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            method = zipfile.ZIP_STORED if name in stored else zipfile.ZIP_DEFLATED
            archive.writestr(name, content, method)
    return buffer.getvalue()


def office(part: str, kind: str, first: Mapping[str, bytes] | None = None) -> bytes:
    """An Office Open XML file; `first` is what its producer writes before the list of types."""
    types = (
        '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/'
        f'content-types"><Override PartName="/{part}" ContentType="{kind}"/></Types>'
    )
    members = {
        "[Content_Types].xml": types.encode(),
        "_rels/.rels": b'<?xml version="1.0"?><Relationships/>',
        part: b'<?xml version="1.0"?><document>words</document>',
    }
    return zipped({**(first or {}), **members})


def docx(first: Mapping[str, bytes] | None = None) -> bytes:
    return office("word/document.xml", f"{MAIN}wordprocessingml.document.main+xml", first)


def docm() -> bytes:
    kind = "application/vnd.ms-word.document.macroEnabled.main+xml"
    return office("word/document.xml", kind, {"word/vbaProject.bin": b"macros"})


def xlsx() -> bytes:
    return office("xl/workbook.xml", f"{MAIN}spreadsheetml.sheet.main+xml")


def pptx() -> bytes:
    return office("ppt/presentation.xml", f"{MAIN}presentationml.presentation.main+xml")


def docx_types_last() -> bytes:
    """A Word file whose list of types is its last member, behind 200 KB of noise."""
    noise = bytes(range(256)) * 800
    return zipped(
        {
            "docProps/noise.bin": noise,
            "word/document.xml": b"<document/>",
            "[Content_Types].xml": (
                f'<Types><Override PartName="/word/document.xml" ContentType="{MAIN}'
                'wordprocessingml.document.main+xml"/></Types>'
            ).encode(),
        },
        stored=("docProps/noise.bin",),
    )


def with_mimetype(media_type: str, **more: bytes) -> bytes:
    """OpenDocument and EPUB: an uncompressed first member named `mimetype`."""
    return zipped({"mimetype": media_type.encode(), "content.xml": b"<office/>", **more})


def epub_by_hand() -> bytes:
    """An EPUB from a general zip tool: `mimetype` is compressed, and not the first member."""
    container = {"META-INF/container.xml": b"<container/>", "mimetype": b"application/epub+zip"}
    return zipped(container, stored=())


def jar() -> bytes:
    return zipped({"META-INF/MANIFEST.MF": b"Manifest-Version: 1.0\n", "a/B.class": java_class()})


def apk() -> bytes:
    return zipped(
        {
            "AndroidManifest.xml": b"\x03\0\x08\0" + bytes(60),
            "META-INF/MANIFEST.MF": b"Manifest-Version: 1.0\n",
            "classes.dex": dex(),
        }
    )


def kmz() -> bytes:
    return zipped(
        {"doc.kml": b'<?xml version="1.0"?><kml xmlns="http://www.opengis.net/kml/2.2"/>'}
    )


def xps() -> bytes:
    return office(
        "FixedDocumentSequence.fdseq",
        "application/vnd.ms-package.xps-fixeddocumentsequence+xml",
    )


def pdf() -> bytes:
    return (
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<</Type/Catalog>>\nendobj\ntrailer\n<<>>\n%%EOF\n"
    )


def rtf() -> bytes:
    return b"{\\rtf1\\ansi\\deff0 {\\fonttbl {\\f0 Times;}} words}"


def postscript() -> bytes:
    return b"%!PS-Adobe-3.0\n%%Pages: 1\nshowpage\n"


def eps() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n"


def compound(*streams: str, storage: bytes = b"") -> bytes:
    """An OLE2 compound file: header, one sector of FAT, one of directory entries."""
    sector = 512
    fat = struct.pack("<IIII", 0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFE, 0xFFFFFFFE)
    header = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + storage.ljust(16, b"\0")
    header += struct.pack("<HHHHHHII", 0x3E, 3, 0xFFFE, 9, 6, 0, 0, 0)
    header += struct.pack("<IIIIIIIII", 1, 1, 0, 4096, 0xFFFFFFFE, 0, 0xFFFFFFFE, 0, 0)
    header = header.ljust(sector, b"\xff")
    names = ["Root Entry", *streams]
    entries = b""
    for number, name in enumerate(names):
        text = name.encode("utf-16-le")
        entry = text.ljust(64, b"\0") + struct.pack("<H", len(text) + 2)
        entry += bytes((5 if number == 0 else 2, 1))
        child = 1 if number == 0 and streams else 0xFFFFFFFF
        right = number + 1 if 0 < number < len(streams) else 0xFFFFFFFF
        entry += struct.pack("<III", 0xFFFFFFFF, right, child) + bytes(36)
        entries += entry + struct.pack("<IQ", 2, 64)
    return (
        header + fat.ljust(sector, b"\xff") + entries.ljust(sector * 2, b"\0") + bytes(sector * 4)
    )


def far_compound(*streams: str) -> bytes:
    """An OLE2 file whose directory lies 200 KB behind its start."""
    content = bytearray(compound(*streams))
    start = 512 * 400  # of sector 399
    content[48:52] = struct.pack("<I", 399)
    directory = bytes(content[1024:2048])
    content[1024:2048] = bytes(1024)
    return bytes(content).ljust(start, b"\0") + directory


def sqlite() -> bytes:
    with TemporaryDirectory() as folder:
        path = f"{folder}/a.db"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE notes (id INTEGER, words TEXT)")
        connection.commit()
        connection.close()
        with open(path, "rb") as file:
            return file.read()


def java_class() -> bytes:
    return b"\xca\xfe\xba\xbe\0\0\0\x34\0\x0f\x0a\0\x03\0\x0c" + bytes(120)


def dex() -> bytes:
    return b"dex\n035\0" + bytes(104)


def elf() -> bytes:
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQ", 2, 62, 1, 0x400000, 64, 0)
    return head + struct.pack("<IHHHHHH", 0, 64, 56, 1, 64, 0, 0) + bytes(512)


def windows_program() -> bytes:
    head = b"MZ" + bytes(58) + struct.pack("<I", 128) + bytes(64)
    pe = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x22)
    return head + pe + struct.pack("<H", 0x20B) + bytes(900)


def mach_o() -> bytes:
    return struct.pack("<IIIIIIII", 0xFEEDFACF, 0x01000007, 3, 2, 1, 72, 0, 0) + bytes(512)


def wasm() -> bytes:
    return b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0" + bytes(64)


def font(tag: bytes) -> bytes:
    tables = (b"cmap", b"glyf", b"head", b"hhea", b"hmtx", b"loca", b"maxp", b"name", b"post")
    head = tag + struct.pack(">HHHH", len(tables), 128, 3, 16)
    rows = b"".join(
        name + struct.pack(">III", 0, 256 + 16 * n, 16) for n, name in enumerate(tables)
    )
    return (head + rows).ljust(512, b"\0")


def woff(tag: bytes) -> bytes:
    return tag + b"\0\x01\0\0" + struct.pack(">IHH", 1024, 9, 0) + bytes(1012)


def parquet() -> bytes:
    return b"PAR1\x15\x04\x15\x10" + bytes(256) + struct.pack("<I", 128) + b"PAR1"


def avro() -> bytes:
    return b'Obj\x01\x04\x14avro.codec\x08null\x16avro.schema"{"type":"int"}' + bytes(64)


def hdf5() -> bytes:
    return b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0" + bytes(512)


def pcap() -> bytes:
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + bytes(128)


def swf() -> bytes:
    return b"FWS\x0a" + struct.pack("<I", 600) + b"\x78\0\x05\x5f" + bytes(588)


def torrent() -> bytes:
    return b"d8:announce30:http://tracker.example.com:80/4:infod6:lengthi1e4:name1:aee"


def djvu() -> bytes:
    return b"AT&TFORM" + struct.pack(">I", 600) + b"DJVUINFO" + struct.pack(">I", 10) + bytes(600)


def email() -> bytes:
    return (
        b"Return-Path: <ada@example.com>\r\n"
        b"Received: from a by b; Mon, 30 Nov 2026 10:00:00 +0000\r\n"
        b"Message-ID: <1@example.com>\r\nFrom: Ada <ada@example.com>\r\n"
        b"Subject: words\r\n\r\nHello.\r\n"
    )


def calendar() -> bytes:
    return b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//A//B\r\nEND:VCALENDAR\r\n"


def vcard() -> bytes:
    return b"BEGIN:VCARD\r\nVERSION:4.0\r\nFN:Ada\r\nEND:VCARD\r\n"
