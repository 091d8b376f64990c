"""Live progress: a WebSocket that tells each client what changed, and never skips anything."""

from interfaces.feed.handler import HUB, add_routes
from interfaces.feed.hub import FeedHub
from interfaces.feed.limits import Limits

__all__ = ["HUB", "FeedHub", "Limits", "add_routes"]
