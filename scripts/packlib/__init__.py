"""What becomes of the code on its way to a hospital: locks, wheels, environments, packages, a bundle (`deploy/`)."""
