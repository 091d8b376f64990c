"""The IETF's resumable uploads, in the interop versions 5, 6 and 8."""
