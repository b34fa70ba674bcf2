"""A run's NeXus file: made, filled while it is read, and closed with the account of its frames."""
