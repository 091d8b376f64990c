"""The port `Sender`: signed requests, guarded like all that leave for other people's addresses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import aiohttp

from application.ports.deliveries import MAX_EXCERPT, Reply, Unsendable
from infrastructure.outbound.destinations import BadDestination, PrivateAddress
from infrastructure.outbound.requests import Outbound
from infrastructure.outbound.signing import signature_headers

MOST = 4 * MAX_EXCERPT  # bytes read of an answer: a character takes 4 at most


class HttpSender:
    """A request may take `timeout` seconds, the answer included."""

    def __init__(self, outbound: Outbound, timeout: float) -> None:
        self._outbound = outbound
        self._timeout = timeout

    async def send(
        self, url: str, secrets: Sequence[str], id: str, at: datetime, body: bytes
    ) -> Reply:
        headers = signature_headers(id, int(at.timestamp()), body, *secrets)
        headers["Content-Type"] = "application/json"
        try:
            reply = await self._outbound.send(url, body, headers, self._timeout, most=MOST)
        except TimeoutError:
            raise Unsendable(f"it did not answer within {self._timeout:g} s") from None
        except PrivateAddress as error:
            raise Unsendable(str(error)) from None
        except BadDestination as error:
            raise Unsendable(f"its address {error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError is what aiohttp makes of an address or an answer that is none.
            raise Unsendable(f"it cannot be reached: {error or type(error).__name__}") from error
        text = reply.body.decode(errors="replace").replace("\0", "\ufffd")
        return Reply(status=reply.status, excerpt=text[:MAX_EXCERPT], retry_after=reply.retry_after)
