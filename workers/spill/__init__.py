"""Spilling: frames that find no room in memory, of a detector that writes no file, go to files of their own."""
