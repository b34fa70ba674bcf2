"""The worker: takes batches, has them reduced by a child, and keeps results until they are on disk."""
