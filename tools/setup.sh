#!/usr/bin/env bash
# tools/setup.sh LOCK STAMP: makes .venv anew from LOCK (requirements/cpu.txt or cuda.txt); STAMP is written last, so
# that a killed run counts as none. `make setup` calls it only when the stamp for this lock is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=$1 stamp=$2

fail() {
  echo "make setup: $*" >&2
  exit 1
}

# The lock is made for one Python; another one would need other wheels.
python=
for candidate in python3.11 python3; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || fail "no Python 3.11 found, which the lock is made for; install it"

# --clear: an environment for another lock, or a half-made one, would leave packages that the lock doesn't name.
"$python" -m venv --clear .venv || fail "python3 -m venv failed; on Debian and Ubuntu install python3.11-venv"
# Byte-compiling 2 GB of packages takes longer than compiling, at their first import, the modules that are used.
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)
install=("${pip[@]}" install --no-compile --no-deps)

torch=$(grep '^torch==' "$lock")
if [[ $torch == *+cpu ]]; then
  # PyPI has no CPU build of torch. Where pip's own configuration doesn't offer it, PyTorch's index does.
  if "${pip[@]}" install --dry-run --no-deps "$torch" 2>/dev/null; then
    "${install[@]}" "$torch"
  else
    "${install[@]}" --extra-index-url https://download.pytorch.org/whl/cpu "$torch"
  fi
fi
echo "installing $(grep -c == "$lock") packages from $lock into .venv (a few minutes the first time)" >&2
"${install[@]}" -r "$lock"
touch "$stamp"
