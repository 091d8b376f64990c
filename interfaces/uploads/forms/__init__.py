"""Plain HTML forms with files in them."""
