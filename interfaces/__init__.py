"""How the world talks to us: HTTP, uploads, feed, page, command line."""
