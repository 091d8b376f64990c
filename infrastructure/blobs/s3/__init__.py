"""Blobs in an S3 bucket: multipart uploads, and a tail object with their progress."""
