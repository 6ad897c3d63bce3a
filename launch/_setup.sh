# Sourced by launch/quickstart and launch/test: makes .venv with what EXTRAS name, once.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MERGE_JAX_VENV:-$root/.venv}

good() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

if [ ! -x "$venv/bin/python" ]; then
  python=""
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if good "$name"; then python=$name; break; fi
  done
  if [ -z "$python" ]; then
    echo "merge_jax needs Python 3.11 or newer with venv and ensurepip; found $(python3 --version 2>&1 || true)." \
         "Install one (Debian, Ubuntu: apt install python3-venv), or name it: PYTHON=/path/to/python3 $0" >&2
    exit 1
  fi
  "$python" -m venv "$venv"
fi

# Installed once for each state of pyproject.toml and list of extras.
stamp=$venv/.merge_jax-$EXTRAS
wanted=$(cksum <"$root/pyproject.toml")
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
  echo "installing merge_jax[$EXTRAS] into $venv (once)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$EXTRAS]"
  echo "$wanted" >"$stamp"
fi
