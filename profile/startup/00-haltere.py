"""The beamline at an IPython prompt: ``ipython --profile-dir profile``."""

from IPython import get_ipython

from haltere.interactive import namespace

globals().update(namespace(get_ipython()))
