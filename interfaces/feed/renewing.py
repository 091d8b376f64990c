"""A client goes on with a new key on the connection it has: nothing is told twice or missed."""

from __future__ import annotations

from uuid import UUID

from application.errors import Unavailable
from application.ports.keys import Credential, Principal
from interfaces.feed.admission import principal_for
from interfaces.feed.client import FeedClient
from interfaces.feed.hub import FeedHub
from interfaces.feed.messages import Closed, Error
from interfaces.rest.attempts import ClientAttempts, TooManyAttempts

_REFUSED = "the key is unknown, revoked or expired; the credential before it still counts"
_OTHER = "this key does not see what the one before it does: connect anew with it"


async def renew(
    hub: FeedHub, client: FeedClient, token: str, attempts: ClientAttempts
) -> Error | None:
    """Takes the key for the client's from now on, or answers why not. Raises ConnectionError.

    The key must see the very same: rows are told by what they were asked with, and a cursor says
    "everything I may see, up to here".
    """
    credential = Credential(token)
    try:
        principal = await attempts.checked(
            "key", token, lambda: principal_for(credential, hub.keys)
        )
    except TooManyAttempts as error:
        return Error("too_many_attempts", error.detail)
    except Unavailable:
        await client.say(Error("unavailable", "the database does not answer; try again soon"))
        return None
    if principal is None:
        return Error("key_refused", _REFUSED)
    if view_of(principal) != view_of(client.principal):
        return Error("other_view", _OTHER)
    try:
        hub.roster.rename(client, principal)
    except Closed as refusal:
        return Error("too_many", refusal.reason)
    client.credential = credential
    await client.say(hub.welcome(client))
    return None


def view_of(principal: Principal) -> tuple[str, str | None, UUID | None]:
    """What decides which rows somebody is told."""
    return principal.owner, principal.sees, principal.batch
