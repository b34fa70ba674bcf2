"""The kernel beside everything else that reduces compressed frames, in one interleaved run."""
