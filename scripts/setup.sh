#!/usr/bin/env bash
# Build or update the environment: scripts/setup.sh PYTHON VENV. `make setup` calls it when pyproject.toml or constraints.txt changed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
venv=$2

if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "histofed needs Python 3.11 or newer; say which with: make setup PYTHON=python3.11" >&2
  exit 1
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing into $venv (the first time this takes minutes: torch)"
# compat: a path entry instead of an import hook, which would cost every start of a command line 30 ms
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
"$venv/bin/python" -m pip check
