"""Blobs in a bucket of any S3: multipart uploads, and a tail object that says how far they are."""
