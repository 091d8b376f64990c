"""Access and erasure: keys, sign-ins, and erasures of owners, as recorded facts."""
