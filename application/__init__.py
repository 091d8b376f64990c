"""Use cases, in terms of ports: what the world may ask, and how the parts answer."""
