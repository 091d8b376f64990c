"""Seals made real: their keys, their rows, who writes them and who checks them."""
