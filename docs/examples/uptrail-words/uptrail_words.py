"""Processor `words`: count the words of a text and attach the most frequent ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from application.pipeline import PermanentError, StepContext, StepInput

MAX_SIZE = 8 * 1024 * 1024  # bytes; the counts of such a text fit into memory


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options in the pipeline: how many of the most frequent words are kept."""

    top: int = 10


async def words(
    subject: StepInput, context: StepContext, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the number of words; attach `words.json` with the most frequent ones.

    Raises PermanentError for a file that is not a text in UTF-8 or too large. Any other error is
    retried, as the retry policy of the pipeline defines.
    """
    chosen = msgspec.convert(options, Options)
    if subject.size > MAX_SIZE:
        raise PermanentError(f"a text has at most {MAX_SIZE} bytes")
    counts: Counter[bytes] = Counter()
    done, rest = 0, b""
    async for chunk in context.read():
        text = rest + chunk
        end = text.rfind(b" ") + 1  # the rest may be half a word
        counts.update(text[:end].split())
        rest = text[end:]
        done += len(chunk)
        await context.progress(done, subject.size)
    counts.update(rest.split())
    try:
        most = {word.decode(): count for word, count in counts.most_common(chosen.top)}
    except UnicodeDecodeError:
        raise PermanentError("the file is not a text in UTF-8") from None
    await context.attach("words.json", msgspec.json.encode(most))
    return {"words": counts.total()}


words.options = Options  # type: ignore[attr-defined]  # checked at the start of a worker
