"""Live feed: every change of the followed batches, without gaps, over WebSocket or SSE."""
