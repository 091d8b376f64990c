"""Dashboard at `/`: ES modules without a build step and without external code."""

from interfaces.web.pages import add_routes

__all__ = ["add_routes"]
