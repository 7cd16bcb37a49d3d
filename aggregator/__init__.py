"""The federation's centre: it samples sites, collects their updates, averages them, and never sees a tile."""

# first: it settles the TLS versions before anything can import grpc
import histofed as histofed
