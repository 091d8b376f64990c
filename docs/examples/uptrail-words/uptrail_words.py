"""`words`: counts the words of a text, and keeps the most frequent ones with the upload."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from application.pipeline import Permanent, Subject, Workbench

LARGEST = 8 * 1024 * 1024  # bytes: the counts of a text this long fit into memory


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many of the most frequent words are kept; told in the pipeline's `options`."""

    top: int = 10


async def words(subject: Subject, bench: Workbench, options: dict[str, Any]) -> dict[str, Any]:
    """Returns how many words there are; attaches `words.json` with the most frequent ones.

    Raises Permanent for a file that no further attempt would make a text. Any other error is
    tried again, as the pipeline's policy says.
    """
    chosen = msgspec.convert(options, Options)
    if subject.size > LARGEST:
        raise Permanent(f"a text has at most {LARGEST} bytes")
    counts: Counter[bytes] = Counter()
    done, rest = 0, b""
    async for chunk in bench.read():
        text = rest + chunk
        end = text.rfind(b" ") + 1  # what follows may be half a word
        counts.update(text[:end].split())
        rest = text[end:]
        done += len(chunk)
        await bench.progress(done, subject.size)
    counts.update(rest.split())
    try:
        most = {word.decode(): count for word, count in counts.most_common(chosen.top)}
    except UnicodeDecodeError:
        raise Permanent("this is no text in UTF-8") from None
    await bench.attach("words.json", msgspec.json.encode(most))
    return {"words": counts.total()}


words.options = Options  # type: ignore[attr-defined]  # so that a misspelled one is told at the start
