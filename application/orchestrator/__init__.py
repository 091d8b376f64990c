"""The process manager, as a pure function of what happened: events in, changes and events out."""
