"""tus 1.0.0, with its extensions."""
