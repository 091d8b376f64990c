"""Live progress: tells each client what changed, and never skips anything."""

from interfaces.feed.connection import FeedLimits
from interfaces.feed.endpoints import HUB, add_routes
from interfaces.feed.hub import FeedHub

__all__ = ["HUB", "FeedHub", "FeedLimits", "add_routes"]
