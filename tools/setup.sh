#!/usr/bin/env bash
# tools/setup.sh LOCK STAMP: makes a new .venv from LOCK (requirements/cpu.txt or cuda.txt) and writes STAMP last, so
# that an interrupted run is repeated. `make setup` calls it only when the stamp for this lock is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=$1 stamp=$2

fail() {
  echo "make setup: $*" >&2
  exit 1
}

# The locks have a wheel of every package for these versions. LMCache has none for a newer one.
python='' version='' seen=''
for candidate in python3.11 python3.12 python3.13 python3; do
  version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
  case $version in
    3.11 | 3.12 | 3.13)
      python=$candidate
      break
      ;;
  esac
  seen="$candidate is $version"
done
[ -n "$python" ] || fail "Python 3.11, 3.12 or 3.13 is needed (${seen:-no python3 was found}); install one of them"

# --clear: an environment for another lock, or a half-made one, would leave packages that the lock doesn't name.
"$python" -m venv --clear .venv || fail "$python -m venv failed; on Debian and Ubuntu install python$version-venv"
# Byte-compiling 2 GB of packages takes longer than compiling, at their first import, the modules that are used.
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)
install=("${pip[@]}" install --no-compile --no-deps)

torch=$(grep '^torch==' "$lock")
if [[ $torch == *+cpu ]]; then
  # PyPI has no CPU build of torch. Where pip's own configuration doesn't offer it, PyTorch's index does.
  index=https://download.pytorch.org/whl/cpu
  if "${pip[@]}" install --dry-run --no-deps "$torch" >/dev/null 2>&1; then
    "${install[@]}" "$torch"
  else
    "${install[@]}" --extra-index-url "$index" "$torch" ||
      fail "found no wheel of $torch for Python $version; make $index reachable, or add a folder that has the wheel to pip's find-links"
  fi
fi
echo "installing $(grep -c == "$lock") packages from $lock into .venv with Python $version (a few minutes the first time)" >&2
"${install[@]}" -r "$lock"
touch "$stamp"
