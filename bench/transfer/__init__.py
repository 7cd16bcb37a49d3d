"""What a blob costs on the wire, beside a raw TLS socket; `python -m bench.transfer --help`."""
