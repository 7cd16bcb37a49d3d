"""Flower's side of `bench/aggregate.py`: `FedAvg.aggregate_train` on the same updates. Runs in `.bench-venv`.

    .bench-venv/bin/python bench/flower_case.py FOLDER UPDATES [RESULT]

Update i is file i modulo 4 of the folder, counted by 100 + 17 * i examples. The replies are built before the clock starts,
as they would have arrived. Prints one JSON line {wall, cpu}, in seconds; writes the result's tensors, raw and sorted by
name, to RESULT.
"""

import json
import logging
import os
import struct
import sys
import time
from pathlib import Path

# before any import of Flower: it reports to its makers by default
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

FILES = 4


def identify() -> None:
    """From 1.38 on a message can only be made by a task that has an identity, which is process-global."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        return
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def read(path: Path) -> ArrayRecord:
    """A safetensors file of float32 as Flower holds it."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        record = {}
        for name, entry in sorted(header.items()):
            file.seek(8 + length + entry["data_offsets"][0])
            values = np.fromfile(file, "<f4", int(np.prod(entry["shape"])))
            record[name] = Array(values.reshape(entry["shape"]))
    return ArrayRecord(record)


def main() -> None:
    folder, updates = Path(sys.argv[1]), int(sys.argv[2])
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    identify()
    records = [read(folder / str(index)) for index in range(FILES)]
    replies = []
    for index in range(updates):
        content = RecordDict({"arrays": records[index % FILES], "metrics": MetricRecord({"num-examples": 100 + 17 * index})})
        replies.append(Message(content, reply_to=Message(RecordDict(), index + 1, "train")))
    strategy = FedAvg()
    wall, cpu = time.perf_counter(), time.process_time()
    arrays, _ = strategy.aggregate_train(1, replies)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert arrays is not None, "Flower refused the replies"
    if len(sys.argv) > 3:
        with Path(sys.argv[3]).open("wb") as file:
            for name in sorted(arrays):
                found = arrays[name].numpy()
                assert found.dtype == np.float32, f"Flower made {name} {found.dtype}"
                file.write(found.tobytes())
    print(json.dumps({"wall": wall, "cpu": cpu}))


if __name__ == "__main__":
    main()
