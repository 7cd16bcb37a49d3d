#!/usr/bin/env bash
# The contract with Flower on the first, a middle and the last version that is supported, each in an environment that is
# thrown away: scripts/test_flower.sh PYTHON [VERSION...]. `make test-flower` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(1.30.0 1.36.0 1.42.0)

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=()
for version in "${versions[@]}"; do
  echo "== flwr $version"
  venv=$folder/$version
  "$python" -m venv "$venv"
  pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt)
  tools=(pytest pytest-asyncio pytest-timeout hypothesis -e .)  # -e leaves no build/ behind
  if ! "${pip[@]}" "${tools[@]}" "flwr==$version" 2>"$folder/words"; then
    # a release may ask for a package that is younger than an index: then on top of what the release before it needs
    tail -n 3 "$folder/words" | cut -c 1-160 >&2
    echo "flwr $version cannot be installed as it asks; without its own wishes, over those of an earlier one" >&2
    "${pip[@]}" "${tools[@]}" "flwr<$version"
    "${pip[@]}" --no-deps "flwr==$version"
  fi
  found=$("$venv/bin/python" -c 'import importlib.metadata; print(importlib.metadata.version("flwr"))')
  [ "$found" = "$version" ] || { echo "flwr $found is installed, not $version" >&2; exit 1; }
  # without tests/conftest.py: it draws tiles, which takes packages that have nothing to do with this
  "$venv/bin/python" -m pytest -q -p no:cacheprovider --noconftest tests/unit/aggregator/test_flower.py || failed+=("$version")
done
[ ${#failed[@]} -eq 0 ] || { echo "the contract does not hold with flwr ${failed[*]}" >&2; exit 1; }
echo "the contract holds with flwr ${versions[*]}"
