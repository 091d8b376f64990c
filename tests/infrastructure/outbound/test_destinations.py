from __future__ import annotations

from ipaddress import ip_address

import pytest

from infrastructure.outbound import BadDestination, PrivateAddress, parse_destination


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
