"""The ingest: drains the detectors' streams into a ring in shared memory."""
