"""What several tests share: a certificate authority, an OTLP receiver."""
