"""Small blobs, many to a file: those that come at the same moment share one sync of the disk."""
