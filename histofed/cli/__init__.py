"""The operator's command line, `histofed`. One file per group of commands; `client.py` alone speaks to the aggregator."""
