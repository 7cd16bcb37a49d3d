"""The audit journal: who did what and how it ended, in a hash chain that only grows. No audit, no action."""
