"""Random fault runs on real processes: a seed draws what happens, a rig lets it happen, a judge reads what is left."""
