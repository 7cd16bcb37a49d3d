"""Whole rounds through real daemons: what one costs, beside the peers, and what happens when a process dies in one."""
