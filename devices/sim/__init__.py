"""The simulated beamline: servers that speak the instruments' real protocols, on loopback, from one seed."""
