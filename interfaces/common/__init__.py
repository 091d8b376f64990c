"""The HTTP kernel that the upload protocols, the feed and the REST API share."""
