"""A thousand simulated sites on one real aggregator: gRPC and mutual TLS over loopback, from a few load processes."""
