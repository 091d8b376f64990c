"""Dashboard at `/`: ES modules without a build step and without external code."""
