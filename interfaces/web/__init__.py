"""The page at `/`: live batches in a browser, without a build step and without foreign code."""

from interfaces.web.pages import add_routes

__all__ = ["add_routes"]
