#!/usr/bin/env bash
# Generate histofed/v1 from proto/; with --check only say whether the checked-in code is current.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
target=.
if [ "${1:-}" = --check ]; then
  target=$(mktemp -d)
  trap 'rm -rf "$target"' EXIT
fi
"$python" -m grpc_tools.protoc -I proto --python_out="$target" --pyi_out="$target" --grpc_python_out="$target" proto/histofed/v1/*.proto
if [ "${1:-}" = --check ]; then
  diff -r -x __init__.py -x __pycache__ "$target/histofed/v1" histofed/v1 || { echo "histofed/v1 is not what proto/ says: run 'make proto' and commit" >&2; exit 1; }
fi
