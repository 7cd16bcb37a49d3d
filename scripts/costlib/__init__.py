"""What presets cost; see `scripts/preset_costs.py`."""
