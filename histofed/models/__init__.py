"""Networks, one architecture per file, built by name through `registry`; torch lives here and above, nowhere below."""
