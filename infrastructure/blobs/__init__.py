"""The blob store made real."""
