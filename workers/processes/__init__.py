"""Processes: started, watched, ended, and how they talk of themselves."""
