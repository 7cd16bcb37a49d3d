"""What may be told about a running federation: traces, metrics and log lines, each behind one allow-list."""
