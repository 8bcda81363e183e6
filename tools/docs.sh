#!/usr/bin/env bash
# tools/docs.sh [OPTIONS OF MKDOCS]: builds the documentation's site in build/site. It makes an environment of its own
# in build/docs-env first, from requirements/docs.txt, and again when that file changes. With --install it stops there.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=requirements/docs.txt env=build/docs-env
stamp=$env/.packages-$({ pwd; cat $lock; } | sha256sum | cut -c1-16)

if [ ! -e "$stamp" ]; then
  python=python3
  [ ! -x .venv/bin/python ] || python=.venv/bin/python
  echo "installing $(grep -c == $lock) packages from $lock into $env" >&2
  "$python" -m venv --clear $env
  $env/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -r $lock
  touch "$stamp"
fi
[ "${1:-}" != --install ] || exit 0
# NO_MKDOCS_2_WARNING: the theme's own notice about another program's future.
NO_MKDOCS_2_WARNING=1 exec $env/bin/python -m mkdocs build --strict "$@"
