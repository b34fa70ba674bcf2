"""Bytes and what they mean: messages between our own processes, and the detectors' stream formats. No sockets."""
