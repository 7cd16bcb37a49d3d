"""How an update's tensors are written for the way: fewer bytes, exactly or rounded, without a model in memory.

`words.py` turns values into whole numbers of few distinct high bytes, `planes.py` codes these, `file.py` is the file. Numpy
and zlib only: the aggregator's children and the agent's trainer are the callers.
"""
