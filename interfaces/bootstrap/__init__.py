"""The composition root: the only place that sees every layer, and puts the parts together.

`parts.open_parts` opens the ports, `serving.serve` runs a server.
"""
