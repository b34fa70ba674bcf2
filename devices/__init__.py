"""What stands in the hutch: classic ophyd devices that speak the instruments' own protocols."""
