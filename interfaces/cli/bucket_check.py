"""What `uptrail doctor` looks at in a bucket: that blobs can be kept there."""

from __future__ import annotations

import time

from interfaces.cli.checks import Finding, Level


async def bucket(text: str) -> Finding:
    """It can be written, read, listed and cleaned up."""
    from infrastructure.blobs.s3.failures import BadBlobStore
    from infrastructure.blobs.s3.location import BadLocation, parse_location
    from infrastructure.blobs.s3.opening import check, open_bucket

    try:
        location = parse_location(text)
        async with open_bucket(location) as opened:
            began = time.perf_counter()
            await check(opened)
            took = time.perf_counter() - began
    except BadLocation as error:
        return Finding(Level.FAIL, "blobs", str(error), "check UPTRAIL_BLOBS or --blobs")
    except BadBlobStore as error:
        return Finding(Level.FAIL, "blobs", str(error), error.hint)
    return Finding(Level.OK, "blobs", f"{location}, {1000 * took:.0f} ms to write and delete")
