from __future__ import annotations

from base64 import b64encode

from hypothesis import given
from hypothesis import strategies as st

from domain.errors import ValidationFailed
from domain.file import validate_declaration
from interfaces.uploads import tus_protocol

HEADERS = st.one_of(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80),
    st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")),
    st.lists(
        st.tuples(
            st.sampled_from(["filename", "relativePath", "name", "type", "checksum", "tus-concat"]),
            st.binary(max_size=20),
        ),
        max_size=5,
    ).map(lambda pairs: ",".join(f"{key} {b64encode(raw).decode()}" for key, raw in pairs)),
)


@given(HEADERS)
def test_any_header_is_refused_or_echoed_exactly(header: str) -> None:
    try:
        pairs = tus_protocol.parse(header)
        file = tus_protocol.declaration(pairs, None, default=lambda: "file")
    except ValidationFailed:
        return
    assert tus_protocol.format(pairs) == header or not header.strip()
    assert tus_protocol.CONCAT_METADATA_KEY not in pairs
    for fault in validate_declaration(file):  # no other error is raised
        assert fault.field in ("path", "metadata", "checksum")
