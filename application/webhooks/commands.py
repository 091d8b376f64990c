"""What may be asked of webhooks, each as one imperative Struct."""

from __future__ import annotations

from uuid import UUID

from application.commands import Command
from domain.webhook.subscription import Subscription


class AddWebhook(Command, frozen=True, kw_only=True):
    """`secret` names one that is kept already."""

    id: UUID
    owner: str
    subscription: Subscription
    secret: UUID


class ChangeWebhook(Command, frozen=True, kw_only=True):
    webhook: UUID
    subscription: Subscription


class RotateSecret(Command, frozen=True, kw_only=True):
    """`secret` names one that is kept already."""

    webhook: UUID
    secret: UUID


class RequestTest(Command, frozen=True, kw_only=True):
    """The webhook is to be told of this very command, once, whether or not it is enabled."""

    webhook: UUID


class DisableWebhook(Command, frozen=True, kw_only=True):
    webhook: UUID
    reason: str = "disabled on request"


class EnableWebhook(Command, frozen=True, kw_only=True):
    webhook: UUID


class RemoveWebhook(Command, frozen=True, kw_only=True):
    webhook: UUID
