"""Live feed: every change of the followed batches, without gaps, over WebSocket or SSE."""

from interfaces.feed.connection import FeedLimits
from interfaces.feed.endpoints import HUB, add_routes
from interfaces.feed.hub import FeedHub

__all__ = ["HUB", "FeedHub", "FeedLimits", "add_routes"]
