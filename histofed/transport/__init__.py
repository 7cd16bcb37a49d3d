"""gRPC with mutual TLS: limits, authorisation, errors in words, and resumable transfer of files."""
