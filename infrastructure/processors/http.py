"""The port `RemoteSteps` on PostgreSQL, shared by workers and API processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, LiteralString
from uuid import UUID, uuid4

import aiohttp
import msgspec
import structlog
from msgspec import Meta

from application.errors import Unavailable
from application.pipeline import PermanentError, Quarantine, StepContext, StepInput
from application.ports.jobs import (
    CallbackReport,
    CallbackTokens,
    ProgressReport,
    RemoteStep,
    RemoteSteps,
)
from infrastructure.auth.tokens import is_token, new_token, token_hash
from infrastructure.backoff import Backoff
from infrastructure.outbound import (
    BadDestination,
    ResponseTooLarge,
    SafeHttpClient,
    require_secret,
    signature_headers,
)
from infrastructure.postgres.pool import Pool
from infrastructure.processors.options import Options, parse_options

RETENTION_DAYS = 7  # for which the step of a dead worker is kept

_SWEEP = "DELETE FROM errands WHERE opened_at < now() - make_interval(days => %s) RETURNING id"
_OPEN = """INSERT INTO errands
    (id, upload, attempt, callback_hash, download_hash, download_until)
    VALUES (%s, %s, %s, %s, %s, now() + make_interval(secs => %s)) RETURNING id"""
_CLOSE = "DELETE FROM errands WHERE id = %s RETURNING id"
_BY_ID = "SELECT id, upload, attempt, done, total, answer FROM errands WHERE id = %s"
_BY_CALLBACK = """SELECT id, upload, attempt, done, total, answer FROM errands
    WHERE callback_hash = %s"""
_REDEEM = """UPDATE errands SET downloaded_at = now()
    WHERE download_hash = %s AND downloaded_at IS NULL AND download_until > now()
    RETURNING id, upload, attempt, done, total, answer"""
_SET_PROGRESS = (
    "UPDATE errands SET done = %s, total = %s WHERE id = %s AND answer IS NULL RETURNING id"
)
_SET_ANSWER = "UPDATE errands SET answer = %s WHERE id = %s AND answer IS NULL RETURNING id"

_decode = msgspec.json.Decoder(CallbackReport).decode
_encode = msgspec.json.Encoder().encode


class PostgresRemoteSteps:
    """Stores only hashes of the tokens."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def open(self, upload: UUID, attempt: int, *, download_within: float) -> CallbackTokens:
        tokens = CallbackTokens(id=uuid4(), download=new_token(), callback=new_token())
        await self._rows(_SWEEP, RETENTION_DAYS)
        await self._rows(
            _OPEN,
            tokens.id,
            upload,
            attempt,
            token_hash(tokens.callback),
            token_hash(tokens.download),
            download_within,
        )
        return tokens

    async def get(self, id: UUID) -> RemoteStep | None:
        return _step(await self._rows(_BY_ID, id))

    async def close(self, id: UUID) -> None:
        await self._rows(_CLOSE, id)

    async def redeem_download_token(self, token: str) -> RemoteStep | None:
        return await self._by_token(_REDEEM, token)

    async def by_callback(self, token: str) -> RemoteStep | None:
        return await self._by_token(_BY_CALLBACK, token)

    async def record_report(self, id: UUID, report: CallbackReport) -> bool:
        if report.progress is not None:
            progress = report.progress
            return bool(await self._rows(_SET_PROGRESS, progress.done, progress.total, id))
        return bool(await self._rows(_SET_ANSWER, _encode(report), id))

    async def _by_token(self, query: LiteralString, token: str) -> RemoteStep | None:
        return _step(await self._rows(query, token_hash(token))) if is_token(token) else None

    async def _rows(self, query: LiteralString, *values: object) -> Sequence[tuple[Any, ...]]:
        async with self._pool.connection() as connection:
            return await (await connection.execute(query, values)).fetchall()


def _step(rows: Sequence[tuple[Any, ...]]) -> RemoteStep | None:
    if not rows:
        return None
    id, upload, attempt, done, total, answer = rows[0]
    return RemoteStep(
        id=id,
        upload=upload,
        attempt=attempt,
        progress=None if done is None else ProgressReport(done=done, total=total),
        answer=None if answer is None else _decode(answer),
    )


# `http`: a step performed by a user's own service, in whatever language it is written.

FIRST_LOOK, LONGEST_LOOK = 0.1, 1.0  # seconds between two looks at what a service has said
MAX_MESSAGE_LENGTH = 500  # characters of an answer that an error repeats

_log = structlog.get_logger(__name__)


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
    """The service is unreachable or returned an invalid response; another attempt may succeed."""


class ServicePermanentError(PermanentError):
    """The service reported a permanent error of the file."""

    error_type = "ServiceRefused"


class ServiceQuarantined(Quarantine):
    """The service reported that the file is dangerous."""


class HttpProcessor:
    """The processor. `public_url` is that of the API, at which services call back."""

    def __init__(
        self,
        outbound: SafeHttpClient,
        remote_steps: RemoteSteps,
        public_url: str,
        now: Callable[[], datetime],
    ) -> None:
        self._outbound = outbound
        self._remote_steps = remote_steps
        self._public_url = public_url
        self._now = now

    async def __call__(
        self, subject: StepInput, bench: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the result of the service, immediate or by its callback.

        Raises ServiceFailed, ServicePermanentError, ServiceQuarantined, BadOption, Unavailable.
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
        self, subject: StepInput, chosen: HttpOptions, tokens: CallbackTokens
    ) -> CallbackReport | None:
        """Send the request; return the immediate result, or None if a callback follows."""
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
            message = f"the service did not answer within {chosen.answer_within:g} s"
            raise ServiceFailed(message) from None
        except BadDestination as error:
            raise ServiceFailed(f"the service's `url` {error}") from None
        except (aiohttp.ClientError, ResponseTooLarge, OSError) as error:
            raise ServiceFailed(f"the service cannot be asked: {error}") from error
        return _report(status, answer)

    def _request(
        self, subject: StepInput, chosen: HttpOptions, tokens: CallbackTokens, now: datetime
    ) -> bytes:
        callback = f"{self._public_url}/v1/callbacks/{tokens.callback}"
        content = f"{self._public_url}/v1/callbacks/{tokens.download}/content"
        data = msgspec.structs.asdict(subject) | {
            "parameters": chosen.parameters,
            "content_url": content,
            "callback_url": callback,
        }
        return msgspec.json.encode({"type": "step.requested", "timestamp": now, "data": data})

    async def _hear(self, tokens: CallbackTokens, bench: StepContext) -> CallbackReport:
        """Wait for the callback without a limit: the caller applies the step's timeout."""
        pauses = Backoff(FIRST_LOOK, LONGEST_LOOK)
        while True:
            await asyncio.sleep(pauses.next_pause())
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
    text = answer[:MAX_MESSAGE_LENGTH].decode(errors="replace")
    if status != 200:
        moved = ": redirects are not followed" if 300 <= status < 400 else ""
        raise ServiceFailed(f"the service answered {status}{moved}: {text}")
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
    kinds = {"permanent": ServicePermanentError, "quarantine": ServiceQuarantined}
    raise kinds.get(report.error.kind, ServiceFailed)(report.error.message)
