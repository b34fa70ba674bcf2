"""One file per technique; a reducer is found by its entry-point name in the group ``haltere.reducers``."""
