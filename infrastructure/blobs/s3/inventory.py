"""What lies in the bucket, looked through page by page, and what killed processes left there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog

from application.transfer.names import FOLDER, upload_named_in
from infrastructure.blobs.s3.bucket import Bucket
from infrastructure.blobs.s3.failures import told
from infrastructure.blobs.s3.locks import Locks
from infrastructure.blobs.s3.state import Growing, blob_of_tail, look

PAGES = 256  # a round; a bucket that has more of them is looked through in several rounds

_log = structlog.get_logger(__name__)


class Inventory:
    """The port `BlobInventory` over a bucket; only the blobs of uploads are looked at.

    Keys cannot be listed in even portions without knowing them, so a part is the page after the
    last one, wherever that ended.
    """

    def __init__(self, bucket: Bucket, locks: Locks) -> None:
        self._bucket = bucket
        self._locks = locks
        self._after = ""
        self._through = True

    async def stale(self, part: int, age: float) -> list[str]:
        before = datetime.now(UTC) - timedelta(seconds=age)
        with told():
            if part == 0:
                self._through = False
                await self._free_uploads(before)
            if self._through:
                return []
            page, more = await self._bucket.page(f"{FOLDER}/", self._after)
            self._after = page[-1].name if page and more else ""
            self._through = not more
        names = (blob_of_tail(found.name) for found in page if found.written < before)
        return list(dict.fromkeys(names))

    async def _free_uploads(self, before: datetime) -> None:
        """Frees the parts of uploads that began before this time and that no tail names."""
        freed = 0
        async for pending in self._bucket.pending(f"{FOLDER}/"):
            if pending.began >= before or upload_named_in(pending.name) is None:
                continue
            lock = await self._locks.take(pending.name)
            if lock is None:  # somebody is at work on it
                continue
            try:
                blob = (await look(self._bucket, pending.name)).blob
                if isinstance(blob, Growing) and blob.state.parts.upload == pending.upload:
                    continue
                await self._bucket.abort(pending.name, pending.upload)
                freed += 1
            finally:
                await lock.release()
        if freed:
            _log.info("s3_uploads_freed", count=freed)
