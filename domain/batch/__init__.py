"""The batch: many uploads as one job."""
