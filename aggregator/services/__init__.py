"""The wire's edge: each service converts a message, calls the core, and converts the answer back."""
