"""Online reduction of fly scans at synchrotron nanoprobes.

====================  ==========================================================
haltere.devices       what stands in the hutch, and servers that simulate it
haltere.plans         what the user asks for
haltere.callbacks     what listens to documents
haltere.workers       what runs on compute nodes
====================  ==========================================================
"""

from importlib.metadata import version

__version__ = version("haltere")
__all__ = ["__version__"]
