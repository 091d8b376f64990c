"""How bytes become a received upload, whatever protocol carries them."""
