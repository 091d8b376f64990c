"""Counts of connections and the live clients, without sockets."""

from __future__ import annotations

from typing import Any

import pytest

from application.ports.auth import Credential, Principal, Scope
from application.ports.read_model import FeedFilter
from interfaces.feed.connection import ClientPosition, FeedClient, FeedLimits, Subscription
from interfaces.feed.protocol import JSON, ConnectionClosed
from interfaces.feed.registry import ConnectionRegistry

ONE = Principal(name="key:one", owner="acme", scope=Scope.VIEWER)
TWO = Principal(name="key:two", owner="acme", scope=Scope.VIEWER)


def client_of(principal: Principal, position: int = 0) -> FeedClient:
    transport: Any = None
    client = FeedClient(transport, JSON, principal, Credential(principal.name))
    start = ClientPosition("e", position, position, None)
    client.follow(Subscription(FeedFilter("acme", None), start))
    return client


async def test_a_connection_counts_for_its_principal_until_it_ends_or_renews_its_key() -> None:
    registry = ConnectionRegistry(FeedLimits(max_connections=1))
    first = client_of(ONE)
    registry.add(first)
    with pytest.raises(ConnectionClosed):
        registry.add(client_of(ONE))
    registry.rename(first, TWO)
    with pytest.raises(ConnectionClosed):
        registry.add(client_of(TWO))
    registry.add(client_of(ONE))
    registry.remove(first)
    registry.add(client_of(TWO))


async def test_the_connections_of_a_principal_share_its_buffer() -> None:
    registry = ConnectionRegistry(FeedLimits(max_principal_buffer=100))
    many, alone = [client_of(ONE) for _ in range(4)], client_of(TWO)
    for client in (*many, alone):
        registry.add(client)

    assert registry.buffer_limit(many[0], 50) == 25
    assert registry.buffer_limit(alone, 50) == 50
    for client in many[1:]:
        registry.remove(client)
    assert registry.buffer_limit(many[0], 50) == 50


async def test_a_client_behind_the_live_ones_does_not_become_live() -> None:
    registry = ConnectionRegistry(FeedLimits())
    assert registry.join(client_of(ONE, position=9))
    assert not registry.join(client_of(TWO, position=8))
    assert registry.join(client_of(TWO, position=9))


async def test_a_client_that_left_and_joined_again_is_not_in_the_live_set_from_before() -> None:
    registry = ConnectionRegistry(FeedLimits())
    client = client_of(ONE)
    registry.join(client)
    before = registry.live_set()
    assert before.includes(client)
    registry.leave(client)
    registry.join(client)

    assert not before.includes(client)
    assert registry.live_set().includes(client)
