"""Whether `default` beats the paper's recipe on real tiles at equal cost; `python -m bench.quality --help`."""
