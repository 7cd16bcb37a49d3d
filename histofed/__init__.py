"""Common ground of the histofed daemons and the operator's CLI; it knows neither daemon."""

import os

__version__ = "0.1.0"

# gRPC reads this once, when its library is loaded: an RSA suite, which our ECDSA keys never use, leaves TLS 1.3 alone
# (histofed/transport/tls.py). Every process of ours imports this module before it imports grpc.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
# its C core writes handshake details to stderr, past our log; what matters comes back as an error
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
