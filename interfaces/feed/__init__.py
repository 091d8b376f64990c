"""Live progress: tells each client what changed, and never skips anything."""

from interfaces.feed.handler import add_routes
from interfaces.feed.hub import FeedHub
from interfaces.feed.limits import Limits
from interfaces.feed.serving import HUB

__all__ = ["HUB", "FeedHub", "Limits", "add_routes"]
