from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.file import FileDeclaration, path_error, sanitize, validate_declaration
from domain.ids import (
    batch_id_for,
    concatenated_batch_id_for,
    partial_upload_id_for,
    rejection_id_for,
    upload_id_for,
)
from tests.builders import BATCH


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../../b",
        "a//b",
        "a/",
        "./a",
        "a\x00b",
        "a\nb",
        "a\x7fb",
        "a\\b",
        "evil\u202egpj.exe",
        "x" * 256,
        "写" * 256,
        "😀" * 128,
        "a\u2066b",
        "a\u2028b",
        "/".join(["x" * 200] * 11),
        "\ud800",
    ],
)
def test_a_path_that_leaves_its_batch_or_hides_something_is_a_fault(path: str) -> None:
    assert path_error(path)


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b.txt",
        "Fotos/Übersicht 2026.jpg",
        "...",
        "a..b",
        "写真",
        "写" * 255,
        "😀" * 127,
        "a\u200db",
    ],
)
def test_an_ordinary_path_is_sound(path: str) -> None:
    assert path_error(path) is None


@pytest.mark.parametrize(
    ("declared", "field"),
    [
        ({"size": -1}, "files/3/size"),
        ({"size": 2**53}, "files/3/size"),
        ({"checksum": "sha256:abc"}, "files/3/checksum"),
        ({"checksum": "md5:" + "0" * 64}, "files/3/checksum"),
        ({"media_type": "image"}, "files/3/media_type"),
        ({"media_type": "image/png\r\nX: y"}, "files/3/media_type"),
        ({"metadata": {"k": "v" * 5000}}, "files/3/metadata"),
        ({"metadata": {"k": "a\nb"}}, "files/3/metadata"),
        ({"metadata": {str(n): "" for n in range(33)}}, "files/3/metadata"),
    ],
)
def test_every_fault_names_its_field(declared: dict[str, object], field: str) -> None:
    file = FileDeclaration(path="a", **declared)  # type: ignore[arg-type]

    assert [fault.field for fault in validate_declaration(file, at="files/3/")] == [field]


@given(st.text())
def test_a_printable_text_has_no_control_characters(text: str) -> None:
    shown = sanitize(text)

    assert len(shown) <= 200
    assert "\n" not in shown
    shown.encode()


@given(st.text(min_size=1), st.text(min_size=1))
def test_one_path_is_one_upload(first: str, second: str) -> None:
    first, second = sanitize(first), sanitize(second)

    assert (upload_id_for(BATCH, first, b"") == upload_id_for(BATCH, second, b"")) == (
        first == second
    )


def test_a_derived_id_is_a_uuid_of_version_8_beside_its_batch() -> None:
    upload = upload_id_for(BATCH, "a", b"")

    assert upload.version == 8
    assert upload.bytes[:6] == BATCH.bytes[:6]
    assert batch_id_for("acme", "k", b"").version == 8
    assert batch_id_for("acme", "k", b"") != batch_id_for("other", "k", b"")


def test_without_a_secret_ids_are_those_of_version_0_1() -> None:
    batch = UUID("01a22d99-b08d-7052-badb-c285b0a790fb")
    assert str(batch_id_for("acme", "k", b"")) == "295b7d1a-e1b5-89ba-9572-211195b3fce7"
    assert str(upload_id_for(batch, "a/b.txt", b"")) == "01a22d99-b08d-88b5-9051-0949bca2def8"
    rejected = rejection_id_for(batch, "a", "invalid", b"")
    assert str(rejected) == "01a22d99-b08d-843c-a4ba-21974ae01c0d"
    joined = concatenated_batch_id_for([batch, partial_upload_id_for(batch)], b"")
    assert str(joined) == "285fd07f-611b-806b-b85e-a7faf0e69b05"


def test_ids_under_a_secret_cannot_be_computed_without_it() -> None:
    derived = [
        {
            batch_id_for("acme", "k", secret),
            upload_id_for(BATCH, "a", secret),
            rejection_id_for(BATCH, "a", "invalid", secret),
            concatenated_batch_id_for([BATCH], secret),
        }
        for secret in (b"", b"1" * 32, b"2" * 32)
    ]
    assert len(set.union(*derived)) == 12
    upload = upload_id_for(BATCH, "a", b"1" * 32)
    assert upload == upload_id_for(BATCH, "a", b"1" * 32)
    assert (upload.version, upload.bytes[:6]) == (8, BATCH.bytes[:6])
