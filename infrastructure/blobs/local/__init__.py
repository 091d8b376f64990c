"""Blobs in a folder: of this machine, or one that all machines share."""
