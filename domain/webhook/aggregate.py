"""The webhook aggregate: decisions return the events that follow from a command, or raise."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Self, assert_never
from uuid import UUID

import msgspec
from msgspec.structs import replace

from domain.errors import InvalidState, ValidationFailed
from domain.webhook.events import (
    WebhookAdded,
    WebhookChanged,
    WebhookDisabled,
    WebhookEnabled,
    WebhookEvent,
    WebhookFilter,
    WebhookRemoved,
    WebhookSecretRotated,
    WebhookTestRequested,
    validate_filter,
)

ROTATION = timedelta(hours=24)
"""Time for which an earlier secret signs beside the new one, so that receivers can change."""

MAX_SECRETS = 5


class SigningSecret(msgspec.Struct, frozen=True):
    """A secret that signs requests, until a time if there is one."""

    id: UUID
    until: datetime | None = None

    def signs(self, at: datetime) -> bool:
        return self.until is None or at < self.until


class Webhook(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="webhook"):
    """Subscription of an owner to events, delivered to a URL. `secrets` are newest first.

    `changed_at` and `changed_by` are of the last change; `reason` is why it is disabled.
    """

    id: UUID
    version: int
    owner: str
    subscription: WebhookFilter
    secrets: tuple[SigningSecret, ...]
    enabled: bool = True
    reason: str = ""
    removed: bool = False
    added_at: datetime
    added_by: str
    changed_at: datetime
    changed_by: str

    # Decide: return the events that follow from a command, or raise.

    @staticmethod
    def add(
        owner: str, subscription: WebhookFilter, secret: UUID, *, at: datetime, by: str
    ) -> tuple[WebhookEvent, ...]:
        """Add a webhook. Raises ValidationFailed."""
        _require_valid(subscription)
        added = WebhookAdded(at=at, by=by, owner=owner, subscription=subscription, secret=secret)
        return (added,)

    def change(
        self, subscription: WebhookFilter, *, at: datetime, by: str
    ) -> tuple[WebhookEvent, ...]:
        """Change the filter; no event if it is the same. Raises ValidationFailed."""
        self._require_not_removed()
        _require_valid(subscription)
        if subscription == self.subscription:
            return ()
        return (WebhookChanged(at=at, by=by, subscription=subscription),)

    def rotate(self, secret: UUID, *, at: datetime, by: str) -> tuple[WebhookEvent, ...]:
        self._require_not_removed()
        if len(self.active_secrets(at)) >= MAX_SECRETS:
            raise InvalidState(
                f"{MAX_SECRETS} secrets sign already: wait until one of them expires"
            )
        until = at + ROTATION
        return (WebhookSecretRotated(at=at, by=by, secret=secret, earlier_until=until),)

    def request_test(self, *, at: datetime, by: str) -> tuple[WebhookEvent, ...]:
        self._require_not_removed()
        return (WebhookTestRequested(at=at, by=by),)

    def disable(
        self, reason: str = "disabled on request", *, at: datetime, by: str
    ) -> tuple[WebhookEvent, ...]:
        self._require_not_removed()
        return (WebhookDisabled(at=at, by=by, reason=reason),) if self.enabled else ()

    def enable(self, *, at: datetime, by: str) -> tuple[WebhookEvent, ...]:
        self._require_not_removed()
        return () if self.enabled else (WebhookEnabled(at=at, by=by),)

    def remove(self, *, at: datetime, by: str) -> tuple[WebhookEvent, ...]:
        return () if self.removed else (WebhookRemoved(at=at, by=by),)

    def active_secrets(self, at: datetime) -> tuple[SigningSecret, ...]:
        """Return the secrets that sign a request at this time, newest first."""
        return tuple(secret for secret in self.secrets if secret.signs(at))

    # Evolve: take an event as fact.

    @classmethod
    def begin(cls, id: UUID, event: WebhookEvent) -> Self:
        if not isinstance(event, WebhookAdded):
            raise InvalidState("a webhook begins by being added")
        return cls(
            id=id,
            version=1,
            owner=event.owner,
            subscription=event.subscription,
            secrets=(SigningSecret(event.secret),),
            added_at=event.at,
            added_by=event.by,
            changed_at=event.at,
            changed_by=event.by,
        )

    def evolve(self, event: WebhookEvent) -> Self:
        if isinstance(event, WebhookTestRequested):
            return replace(self, version=self.version + 1)
        now = replace(self, version=self.version + 1, changed_at=event.at, changed_by=event.by)
        match event:
            case WebhookChanged(subscription=subscription):
                return replace(now, subscription=subscription)
            case WebhookSecretRotated():
                return replace(now, secrets=self._rotated(event))
            case WebhookDisabled(reason=reason):
                return replace(now, enabled=False, reason=reason)
            case WebhookEnabled():
                return replace(now, enabled=True, reason="")
            case WebhookRemoved():
                return replace(now, enabled=False, removed=True)
            case WebhookAdded():
                raise InvalidState("a webhook is added once")
            case _:
                assert_never(event)

    def _rotated(self, event: WebhookSecretRotated) -> tuple[SigningSecret, ...]:
        """Return the secrets after a rotation; earlier ones keep their end, ended ones go."""
        earlier = (
            SigningSecret(secret.id, secret.until or event.earlier_until)
            for secret in self.active_secrets(event.at)
        )
        return (SigningSecret(event.secret), *earlier)

    def _require_not_removed(self) -> None:
        if self.removed:
            raise InvalidState("the webhook was removed")


def _require_valid(subscription: WebhookFilter) -> None:
    if faults := tuple(validate_filter(subscription)):
        raise ValidationFailed(*faults)
