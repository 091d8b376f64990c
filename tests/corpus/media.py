"""Builders of audio and video files: valid headers and framing, silent or dark content."""

from __future__ import annotations

import struct
import wave
from io import BytesIO

from tests.corpus.images import box, brands


def mp3_frames(count: int = 40, header: bytes = b"\xff\xfb\x90\x00") -> bytes:
    """MPEG-1 layer III frames of 128 kbit/s at 44.1 kHz: 417 bytes each."""
    return (header + bytes(413)) * count


def id3_tag() -> bytes:
    tag = b"TIT2" + struct.pack(">I", 6) + bytes(2) + b"\0Title"
    return b"ID3\x03\0\0" + bytes((0, 0, 0, len(tag))) + tag


def mp3_with_id3() -> bytes:
    return id3_tag() + mp3_frames()


def mp3_padded() -> bytes:
    """Frames after zero bytes, as cut and streamed files begin."""
    return bytes(700) + mp3_frames()


def mp3_mono_22() -> bytes:
    """MPEG-2 layer III, 64 kbit/s at 22.05 kHz: 208 bytes a frame."""
    return (b"\xff\xf3\x80\xc4" + bytes(204)) * 40


def mp2() -> bytes:
    """MPEG-1 layer II, 192 kbit/s at 48 kHz: 576 bytes a frame."""
    return (b"\xff\xfd\xa4\x04" + bytes(572)) * 20


def aac_adts() -> bytes:
    """ADTS frames of 200 bytes: AAC LC, 44.1 kHz, stereo."""
    size = 200
    head = bytes(
        (0xFF, 0xF1, 0x50, 0x80 | size >> 11, size >> 3 & 0xFF, (size & 7) << 5 | 31, 0xFC)
    )
    return (head + bytes(size - 7)) * 20


def wav() -> bytes:
    buffer = BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(4000))
    return buffer.getvalue()


def flac() -> bytes:
    return (
        b"fLaC\x80\0\0\x22" + struct.pack(">HH", 4096, 4096) + bytes(30) + b"\xff\xf8" + bytes(900)
    )


def ogg(packet: bytes) -> bytes:
    head = b"OggS\0\x02" + bytes(8) + struct.pack("<III", 7, 0, 0) + b"\x01" + bytes((len(packet),))
    return head + packet + bytes(600)


def ogg_vorbis() -> bytes:
    return ogg(b"\x01vorbis" + struct.pack("<IBIIII", 0, 2, 44100, 0, 128000, 0) + b"\xb8\x01")


def ogg_opus() -> bytes:
    return ogg(b"OpusHead\x01\x02\x38\x01\x80\xbb\0\0\0\0\0")


def ogg_flac() -> bytes:
    return ogg(b"\x7fFLAC\x01\0\0\x01fLaC\0\0\0\x22" + bytes(34))


def ogg_theora() -> bytes:
    return ogg(b"\x80theora\x03\x02\x01" + bytes(33))


def aiff() -> bytes:
    common = b"COMM" + struct.pack(">IhIh", 18, 1, 1000, 16) + b"\x40\x0e\xac\x44" + bytes(6)
    body = b"AIFF" + common + b"SSND" + struct.pack(">III", 2008, 0, 0) + bytes(2000)
    return b"FORM" + struct.pack(">I", len(body)) + body


def au() -> bytes:
    return b".snd" + struct.pack(">IIIII", 24, 800, 3, 8000, 1) + bytes(800)


def midi() -> bytes:
    return (
        b"MThd"
        + struct.pack(">IHHH", 6, 0, 1, 96)
        + b"MTrk"
        + struct.pack(">I", 4)
        + b"\0\xff\x2f\0"
    )


def amr() -> bytes:
    return b"#!AMR\n" + (b"\x3c" + bytes(31)) * 20


def ac3() -> bytes:
    return (b"\x0b\x77\x5d\x2f\x1e\x40" + bytes(762)) * 4


def moov(codec: bytes = b"avc1") -> bytes:
    return box(b"moov", box(b"mvhd", bytes(100)) + box(b"trak", box(b"tkhd", bytes(84)) + codec))


def iso_media(major: bytes, *compatible: bytes) -> bytes:
    return brands(major, *compatible, then=moov() + box(b"mdat", bytes(range(256)) * 4))


def mov_without_ftyp() -> bytes:
    return box(b"wide", b"") + box(b"mdat", bytes(range(256)) * 4) + moov()


def mov_moov_first() -> bytes:
    return moov() + box(b"mdat", bytes(range(256)) * 4)


def recorded(handler: bytes, size: int = 200_000) -> bytes:
    """An MP4 as recorders write it: the description of its only track behind the media data."""
    track = box(b"trak", box(b"mdia", box(b"hdlr", bytes(8) + handler + bytes(13))))
    movie = box(b"moov", box(b"mvhd", bytes(100)) + track)
    return brands(b"mp42", b"isom", then=box(b"mdat", bytes(range(250)) * (size // 250)) + movie)


def ebml(doctype: bytes, codecs: bytes = b"V_VP8") -> bytes:
    inner = b"\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08"
    inner += b"\x42\x82" + bytes((0x80 | len(doctype),)) + doctype
    inner += b"\x42\x87\x81\x04\x42\x85\x81\x02"
    head = b"\x1aE\xdf\xa3" + bytes((0x80 | len(inner),)) + inner
    return head + b"\x18S\x80g\x01" + b"\xff" * 7 + bytes(64) + codecs + bytes(512)


def avi() -> bytes:
    headers = b"hdrlavih" + struct.pack("<I", 56) + bytes(56)
    listed = b"LIST" + struct.pack("<I", len(headers)) + headers
    body = b"AVI " + listed + b"LIST" + struct.pack("<I", 4) + b"movi" + bytes(512)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def mpeg_ts(packet: int = 188) -> bytes:
    """Transport stream packets; with 192 bytes each as cameras write them (time stamps first)."""
    stamp = bytes(packet - 188)
    table = b"\x47\x40\x00\x10\0\0\xb0\x0d\0\x01\xc1\0\0\0\x01\xf0\0\x2a\xb1\x04\xb2"
    packets = [stamp + table.ljust(188, b"\xff")]
    packets += [
        stamp + b"\x47" + struct.pack(">H", 256) + bytes((0x10 | n % 16,)) + bytes(184)
        for n in range(60)
    ]
    return b"".join(packets)


def mpeg_ps() -> bytes:
    pack = b"\0\0\x01\xba\x44\0\x04\0\x04\x01\0\0\x03\xf8"
    system = b"\0\0\x01\xbb\0\x0c\x80\0\x01\x04\xe1\xff\xe0\xe0\x58\xc0\xc0\x20"
    return pack + system + b"\0\0\x01\xe0\0\x64" + bytes(100) + pack + bytes(512)


def mpeg_es() -> bytes:
    return b"\0\0\x01\xb3\x16\0\xf0\xc4\xff\xff\xe0\x18\0\0\x01\xb8" + bytes(512)


def flv() -> bytes:
    return b"FLV\x01\x05\0\0\0\x09\0\0\0\0\x12\0\0\x10" + bytes(512)


def asf() -> bytes:
    guid = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
    return guid + struct.pack("<QIBB", 30, 0, 1, 2) + bytes(512)
