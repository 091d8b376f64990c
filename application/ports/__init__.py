"""What use cases need of the world: small Protocols, each with its promise and its errors."""
