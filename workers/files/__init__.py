"""The detectors' HDF5 files: which may be opened, how they are read, and how little of them is trusted."""
