"""Many uploads as one job: what can happen to it, and what that leaves."""
