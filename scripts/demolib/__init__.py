"""The parts of `make demo`: files, daemons, commands, sample sheets, report. `scripts/demo.py` puts them in order."""
