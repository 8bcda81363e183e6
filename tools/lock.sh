#!/usr/bin/env bash
# Resolves pyproject.toml anew into requirements/cpu.txt and requirements/cuda.txt. Wants `uv` on the PATH.
#
# torch's CPU build comes from PyTorch's own index, or from TORCH_CPU_LINKS where that is set (a folder or a page of
# wheels). uv's usual variables choose the package index, but don't set UV_FIND_LINKS: both locks would follow it.
set -euo pipefail
cd "$(dirname "$0")/.."

# glibc 2.31 is the oldest that every wheel in the locks runs on.
resolve=(uv pip compile pyproject.toml --extra dev --upgrade --quiet --no-header --no-annotate
  --only-binary :all: --python-version 3.11 --python-platform x86_64-manylinux_2_31)
torch_cpu=(--extra-index-url https://download.pytorch.org/whl/cpu)
[ -z "${TORCH_CPU_LINKS:-}" ] || torch_cpu=(--find-links "$TORCH_CPU_LINKS")

# lock NAME TEXT [uv's options…]: replaces requirements/NAME.txt only if the resolve succeeds.
lock() {
  local name=$1 text=$2 new
  shift 2
  new=$(mktemp)
  "${resolve[@]}" --extra "$name" "$@" >"$new"
  {
    printf '# %s\n' "Linux x86_64, glibc 2.31 or newer, Python 3.11; every package that is installed, nothing else." \
      "$text" "Made by tools/lock.sh (make lock) from pyproject.toml; don't edit it by hand." \
      "Install: pip install --no-deps -r requirements/$name.txt"
    echo
    cat "$new"
  } >"requirements/$name.txt"
  rm "$new"
  echo "requirements/$name.txt: $(grep -c == "requirements/$name.txt") packages"
}

# unsafe-best-match: that index holds old copies of other packages too, of which the newest that fits is wanted.
lock cpu "The CPU build of vLLM. What is left out on purpose, and why: requirements/cpu.exclude.txt." \
  --excludes requirements/cpu.exclude.txt --index-strategy unsafe-best-match "${torch_cpu[@]}"
lock cuda "The CUDA 13 build of vLLM: the full closure, nothing left out."
