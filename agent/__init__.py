"""The hospital's daemon: it waits for work, asks the site's consent, trains in a child process, and hands back updates."""

# sets what gRPC reads when it is loaded, so it comes before any import of grpc
import histofed  # noqa: F401
