"""Bytes over HTTP: upload protocols on the way in, content on the way out."""
