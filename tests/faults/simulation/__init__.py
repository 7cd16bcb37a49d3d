"""A whole federation in one process, on a clock that jumps and a network that lies, driven by a seed.

Real: the aggregator's engine, scheduler, store, journal, blobs, admission, arithmetic and servicers; the agents' link and
transfers; in some sites the whole agent. Played: time, the network, TLS, child processes, power cuts, full disks, operators.
`python -m tests.faults.simulation --seeds 1-500` runs seeds; `world.simulate(seed)` is one.
"""
