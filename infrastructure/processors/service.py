"""`http`: a step performed by a user's own service, in whatever language it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

import aiohttp
import msgspec
import structlog
from msgspec import Meta

from application.errors import Unavailable
from application.pipeline import Permanent, Quarantine, Subject, Workbench
from application.ports.jobs import CallbackReport, CallbackTokens, RemoteSteps
from infrastructure.outbound.destinations import BadDestination
from infrastructure.outbound.requests import AnswerTooLong, Outbound
from infrastructure.outbound.signing import require_secret, signature_headers
from infrastructure.processors.options import Options, parse_options

FIRST_LOOK, LONGEST_LOOK = 0.1, 1.0  # seconds between two looks at what a service has said
MAX_TOLD = 500  # characters of an answer that an error repeats

_log = structlog.get_logger(__name__)
_decode = msgspec.json.Decoder(CallbackReport).decode


class HttpOptions(Options, frozen=True, kw_only=True):
    """The service's `url`, the `secret` both sides know, and `parameters` it is passed.

    The service has `answer_within` seconds to answer the request, be it with 202, and
    `download_within` to fetch the bytes. How long it may work is the step's `timeout`.
    """

    url: Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+(/\S*)?$")]
    secret: str
    answer_within: Annotated[float, Meta(gt=0)] = 30.0
    download_within: Annotated[float, Meta(gt=0)] = 300.0
    parameters: dict[str, Any] = {}

    def __post_init__(self) -> None:
        try:
            require_secret(self.secret)
        except ValueError as error:
            raise ValueError(f"`secret` {error}") from None

    def __repr__(self) -> str:
        return f"HttpOptions(url={self.url!r})"  # never the secret


class ServiceFailed(Exception):
    """The service cannot be reached, or did not do what was asked; another attempt may help."""


class ServiceRefused(Permanent):
    """The service says that the file is at fault."""


class ServiceQuarantined(Quarantine):
    """The service says that the file is dangerous."""


class HttpService:
    """The processor. `reach_us` is the address of our API as services see it."""

    def __init__(
        self,
        outbound: Outbound,
        remote_steps: RemoteSteps,
        reach_us: str,
        now: Callable[[], datetime],
    ) -> None:
        self._outbound = outbound
        self._remote_steps = remote_steps
        self._reach_us = reach_us.rstrip("/")
        self._now = now

    async def __call__(
        self, subject: Subject, bench: Workbench, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns what the service returns, at once or by its callback.

        Raises ServiceFailed, ServiceRefused, ServiceQuarantined, BadOption, Unavailable.
        """
        chosen = parse_options(HttpOptions, options)
        tokens = await self._remote_steps.open(
            subject.upload, subject.attempt, download_within=chosen.download_within
        )
        try:
            report = await self._ask(subject, chosen, tokens)
            if report is None:
                report = await self._hear(tokens, bench)
        finally:
            await self._close(tokens)
        return _result(report)

    async def _ask(
        self, subject: Subject, chosen: HttpOptions, tokens: CallbackTokens
    ) -> CallbackReport | None:
        """What the service answers at once; None if it will say so later."""
        now = self._now()
        body = self._request(subject, chosen, tokens, now)
        headers = signature_headers(
            f"errand_{tokens.id.hex}", int(now.timestamp()), body, chosen.secret
        )
        headers["Content-Type"] = "application/json"
        try:
            status, answer = await self._outbound.post(
                chosen.url, body, headers, chosen.answer_within
            )
        except TimeoutError:
            told = f"the service did not answer within {chosen.answer_within:g} s"
            raise ServiceFailed(told) from None
        except BadDestination as error:
            raise ServiceFailed(f"the service's `url` {error}") from None
        except (aiohttp.ClientError, AnswerTooLong, OSError) as error:
            raise ServiceFailed(f"the service cannot be asked: {error}") from error
        return _report(status, answer)

    def _request(
        self, subject: Subject, chosen: HttpOptions, tokens: CallbackTokens, now: datetime
    ) -> bytes:
        callback = f"{self._reach_us}/v1/callbacks/{tokens.callback}"
        content = f"{self._reach_us}/v1/callbacks/{tokens.download}/content"
        data = msgspec.structs.asdict(subject) | {
            "parameters": chosen.parameters,
            "content_url": content,
            "callback_url": callback,
        }
        return msgspec.json.encode({"type": "step.requested", "timestamp": now, "data": data})

    async def _hear(self, tokens: CallbackTokens, bench: Workbench) -> CallbackReport:
        """Waits for the answer, however long: the step's timeout is not known here."""
        pause = FIRST_LOOK
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_LOOK)
            try:
                step = await self._remote_steps.get(tokens.id)
            except Unavailable:
                continue  # the service may say it meanwhile; it is kept
            if step is None:
                raise ServiceFailed("what the service would say has been forgotten")
            if step.progress is not None:
                await bench.progress(step.progress.done, step.progress.total)
            if step.answer is not None:
                return step.answer

    async def _close(self, tokens: CallbackTokens) -> None:
        try:
            await self._remote_steps.close(tokens.id)
        except Unavailable as error:  # the log refuses late words all the same
            _log.warning("remote_step_not_closed", step=str(tokens.id), error=str(error))


def _report(status: int, answer: bytes) -> CallbackReport | None:
    if status == 202:
        return None
    told = answer[:MAX_TOLD].decode(errors="replace")
    if status != 200:
        moved = ": redirects are not followed" if 300 <= status < 400 else ""
        raise ServiceFailed(f"the service answered {status}{moved}: {told}")
    try:
        report = _decode(answer)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ServiceFailed(f"the service's answer makes no sense: {error}") from None
    if report.progress is not None:
        raise ServiceFailed("the service answered 200 with progress: 202 says that it goes on")
    return report


def _result(report: CallbackReport) -> dict[str, Any]:
    if report.result is not None:
        return report.result
    assert report.error is not None
    kinds = {"permanent": ServiceRefused, "quarantine": ServiceQuarantined}
    raise kinds.get(report.error.kind, ServiceFailed)(report.error.message)
