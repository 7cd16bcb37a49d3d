"""The parts of `make demo`: wishes, files, daemons, commands, the federation, its experiment, sample sheets, report.

`scripts/demo.py` puts them in order.
"""
