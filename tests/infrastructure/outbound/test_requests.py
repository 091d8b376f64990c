from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from infrastructure import outbound
from infrastructure.outbound import (
    BadDestination,
    PrivateAddress,
    PublicResolver,
    Reply,
    ResponseTooLarge,
    new_secret,
    open_safe_client,
    parse_destination,
    require_secret,
    signature_headers,
)

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_no_request_leaves_for_a_private_address(host: str) -> None:
    arrived: list[str] = []

    async with listening(_note(arrived)) as port, open_safe_client(private=False) as outbound:
        with pytest.raises(PrivateAddress, match="`allow_private_addresses` is off"):
            await outbound.post(f"http://{host}:{port}/", b"", {}, 5.0)
    assert arrived == []


@pytest.mark.parametrize(
    "host",
    [
        "①②⑦.⓪.⓪.①",
        "１２７.0.0.1",
        "127。0。0。1",
        "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
        "LOCALHOST.",
        "2130706433",
        "127.1",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "127%2e0%2e0%2e1",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[::1%25lo]",
        "0",
    ],
)
async def test_no_spelling_of_a_private_host_reaches_it(host: str) -> None:
    arrived: list[str] = []
    async with listening(_note(arrived)) as port, open_safe_client(private=False) as outbound:
        with pytest.raises((PrivateAddress, BadDestination)):
            await outbound.post(f"http://{host}:{port}/", b"", {}, 5.0)
    assert arrived == []


@pytest.mark.parametrize("names", [("127.0.0.1",), ("127.0.0.1", "::1")])
async def test_the_address_of_the_socket_is_checked_independently_of_the_resolver(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A resolver that was judged before and is asked again answers otherwise: DNS rebinding.
    monkeypatch.setattr(outbound, "PublicResolver", lambda inner: Names(*names))
    arrived: list[str] = []
    async with listening(_note(arrived)) as port, open_safe_client(private=False) as client:
        with pytest.raises(OSError, match=r"a private address"):
            await client.post(f"http://rebind.example:{port}/", b"", {}, 5.0)
    assert arrived == []


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    proxied: list[str] = []
    arrived: list[str] = []

    async def answer(writer: asyncio.StreamWriter) -> None:
        arrived.append("request")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with (
        listening(_note(proxied)) as proxy,
        listening(answer) as port,
        open_safe_client(private=True) as outbound,
    ):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        status, _ = await outbound.post(f"http://127.0.0.1:{port}/", b"", {}, 5.0)
    assert (status, proxied, arrived) == (204, [], ["request"])


async def test_a_name_with_one_private_address_among_others_is_refused() -> None:
    resolver = PublicResolver(Names("1.1.1.1", "10.0.0.1"))
    with pytest.raises(PrivateAddress, match=r"rebind.example is at 10\.0\.0\.1"):
        await resolver.resolve("rebind.example", 80)
    assert len(await PublicResolver(Names("1.1.1.1")).resolve("good.example", 80)) == 1


async def test_a_redirect_is_not_followed() -> None:
    arrived: list[str] = []

    async def redirect(writer: asyncio.StreamWriter) -> None:
        arrived.append("redirect")
        writer.write(b"HTTP/1.1 307 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")

    async with listening(redirect) as port, open_safe_client(private=True) as outbound:
        status, _ = await outbound.post(f"http://127.0.0.1:{port}/", b"", {}, 5.0)
        assert status == 307
    assert arrived == ["redirect"]


async def test_an_endless_answer_is_cut_off() -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + bytes(100_000))

    async with listening(endless) as port, open_safe_client(private=True) as outbound:
        with pytest.raises(ResponseTooLarge):
            await outbound.post(f"http://127.0.0.1:{port}/", b"", {}, 20.0)


async def test_a_long_response_is_cut_and_its_rest_not_awaited() -> None:
    async def long(writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 503 Later\r\nRetry-After: 7\r\nContent-Length: 10000000\r\n\r\n"
        writer.write(head + b"a" * 100_000)

    async with listening(long) as port, open_safe_client(private=True) as outbound:
        reply = await outbound.send(f"http://127.0.0.1:{port}/", b"", {}, 20.0, max_bytes=10)
        assert reply == Reply(503, b"a" * 10, whole=False, retry_after="7")


async def test_a_service_that_never_answers_is_given_up() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await writer.drain()

    async with listening(silent) as port, open_safe_client(private=True) as outbound:
        with pytest.raises(TimeoutError):
            await outbound.post(f"http://127.0.0.1:{port}/", b"", {}, 0.2)


class Names(AbstractResolver):
    """Resolves every name to the same addresses."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=one,
                port=port,
                family=socket.AF_INET6 if ":" in one else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for one in self._addresses
        ]

    async def close(self) -> None:
        """Do nothing: no resource is open."""


def _note(arrived: list[str]) -> Answer:
    async def note(writer: asyncio.StreamWriter) -> None:
        arrived.append("request")

    return note


@asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[int]:
    """A server on a free port of this machine, which answers every request alike."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        await answer(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for writer in writers:
            writer.close()
        server.close()


# Destinations.


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://example.com/hook", "example.com"),
        ("https://EXAMPLE.com./hook", "example.com."),
        ("https://bücher.example/", "xn--bcher-kva.example"),
        ("https://ｅxample.com/", "example.com"),
        ("http://my_service:8080/", "my_service"),
        ("http://1.1.1.1/", "1.1.1.1"),
        ("http://①.①.①.①/", "1.1.1.1"),
        ("http://[2606:4700:4700::1111]:8080/", "2606:4700:4700::1111"),
        ("http://1.2.3.4.example/", "1.2.3.4.example"),
    ],
)
def test_a_destination_has_the_host_that_the_client_will_connect_to(url: str, host: str) -> None:
    destination = parse_destination(url)
    destination.require_public()
    assert destination.host == host
    assert destination.url.raw_host == host or host == host.lower()


@pytest.mark.parametrize(
    "host",
    [
        "①②⑦.⓪.⓪.①",
        "①⓪.0.0.1",
        "169。254。169。254",
        "１９２.168.0.1",
        "localhost",
        "LocalHost.",
        "a.localhost",
        "ⓛocalhost",
        "168.63.129.16",
        "[::ffff:①27.0.0.1]".replace("①", "1"),
        "[64:ff9b::10.0.0.1]",
        "[::]",
        "[::127.0.0.1]",
    ],
)
def test_a_host_that_can_only_be_private_is_refused_before_it_is_resolved(host: str) -> None:
    with pytest.raises(PrivateAddress):
        parse_destination(f"http://{host}:8080/x").require_public()


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://127.1/",
        "http://127.0.1/",
        "http://0x7f000001/",
        "http://0X7F.0.0.1/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://127.0.0.0x1/",
        "http://a.0x/",
        "http://127%2e0%2e0%2e1/",
        "http://%31%32%37.0.0.1/",
        "http://127.0.0.1%00.example.com/",
        "http://[::1%25lo]/",
        "http://[fe80::1%25eth0]/",
        "http://[::ⅰ]/",
        "http://[1.1.1.1]/",
        "http://127.0.0.1\\@1.1.1.1/",
        "http://1.1.1.1:99999/",
        "http://1.1.1.1:0/",
        "http:///x",
        "http://:80/",
        "http://exa mple/",
        "http://a..example/",
        "http://-a.example/",
        "http://" + "a" * 64 + ".example/",
        "http://" + "a." * 127 + "example/",
        "ftp://example.com/",
        "//example.com/",
    ],
)
def test_a_host_that_clients_may_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(BadDestination):
        parse_destination(url)


def test_a_literal_address_is_known_without_a_resolver() -> None:
    assert parse_destination("http://[::ffff:8.8.8.8]/").address == ip_address("::ffff:8.8.8.8")
    assert parse_destination("https://example.com/").address is None


# Signatures.


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_" + "b2xk" * 8
ID, TIMESTAMP = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330


def test_a_signature_is_that_of_the_specification() -> None:
    # The example of the reference libraries of Standard Webhooks.
    headers = signature_headers(ID, TIMESTAMP, b'{"test": 2432232314}', SECRET)

    assert headers == {
        "webhook-id": ID,
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_signatures_of_two_secrets_and_non_ascii_text_keep_their_bytes() -> None:
    # Written down from our own HMAC, before the library signed.
    body = '{"path": "R\u00f6mer \u2713 \U0001f4f7.jpg"}'.encode()

    headers = signature_headers(ID, TIMESTAMP, body, SECRET, OLD_SECRET)

    assert headers["webhook-signature"].split(" ") == [
        "v1,4EubdBQdEGjQ6XXxd2KiCvurYu5q40Ub7Mg8+P/7v5g=",
        "v1,RHItej5nJbGloYpqsKnch66qJX8CG3eabnGcVGL2ocA=",
    ]


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!!", "MfKQ9r8GKYqrTwjU"])
def test_an_invalid_secret_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="must be whsec_ and 24 to 64 bytes in base64") as refused:
        require_secret(secret)
    assert not secret.removeprefix("whsec_") or secret not in str(refused.value)


def test_several_secrets_sign_side_by_side() -> None:
    secrets = [new_secret(), new_secret()]

    alone = [signature_headers("a", 1, b"body", one)["webhook-signature"] for one in secrets]
    together = signature_headers("a", 1, b"body", *secrets)["webhook-signature"]

    assert together == " ".join(alone)
    assert len(set(alone)) == 2
