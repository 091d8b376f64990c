"""What Uptrail tells about itself: logs and metrics."""
