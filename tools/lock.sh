#!/usr/bin/env bash
# Resolves pyproject.toml into requirements/cpu.txt and requirements/cuda.txt. Needs `uv` on the PATH.
# A lock serves every Python below: a package that only some of them need, or need in another version, has a marker.
#
#   tools/lock.sh             # the newest versions that fit (make lock)
#   tools/lock.sh --keep      # the present versions, as far as they still fit
#
# torch's CPU build comes from PyTorch's own index, or from TORCH_CPU_LINKS where that is set (a folder or a page of
# wheels). uv's usual variables choose the package index, but don't set UV_FIND_LINKS: both locks would follow it.
set -euo pipefail
cd "$(dirname "$0")/.."

pythons=(3.11 3.12 3.13)
upgrade=(--upgrade)
[ "${1:-}" != --keep ] || upgrade=()

# glibc 2.31 is the oldest that every wheel in the locks runs on.
resolve=(uv pip compile pyproject.toml --extra dev --quiet --no-header --no-annotate --only-binary :all:
  --python-platform x86_64-manylinux_2_31)
torch_cpu=(--extra-index-url https://download.pytorch.org/whl/cpu)
[ -z "${TORCH_CPU_LINKS:-}" ] || torch_cpu=(--find-links "$TORCH_CPU_LINKS")

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

# merge: prints what all the folder's locks have in common plainly, and the rest with a marker for its Pythons.
merge() {
  awk '
    { count[$0]++; marker[$0] = (marker[$0] ? marker[$0] " or " : "") "python_version == \"" FILENAME "\"" }
    END { for (pin in count) print pin (count[pin] == ARGC - 1 ? "" : " ; " marker[pin]) }
  ' "${pythons[@]}" | LC_ALL=C sort -t = -k 1,1
}

# lock NAME TEXT [uv's options…]: replaces requirements/NAME.txt only if every resolve succeeds.
lock() {
  local name=$1 text=$2 python known=requirements/$1.txt
  shift 2
  local first=("${upgrade[@]}")
  for python in "${pythons[@]}"; do
    # uv prefers the versions that it finds in its output file: the other Pythons follow the first.
    sed 's/ ;.*//' "$known" >"$work/$python"
    "${resolve[@]}" --extra "$name" --python-version "$python" --output-file "$work/$python" \
      "${first[@]}" "$@" >/dev/null
    known=$work/$python first=()
  done
  {
    printf '# %s\n' "Linux x86_64, glibc 2.31 or newer, Python 3.11 to 3.13; every package that is installed, nothing else." \
      "$text" "Made by tools/lock.sh (make lock) from pyproject.toml; don't edit it by hand." \
      "Install: pip install --no-deps -r requirements/$name.txt"
    echo
    (cd "$work" && merge)
  } >"$work/lock"
  mv "$work/lock" "requirements/$name.txt"
  echo "requirements/$name.txt: $(grep -c == "requirements/$name.txt") packages"
}

# unsafe-best-match: that index holds old copies of other packages too, of which the newest that fits is wanted.
lock cpu "The CPU build of vLLM. What is left out on purpose, and why: requirements/cpu.exclude.txt." \
  --excludes requirements/cpu.exclude.txt --index-strategy unsafe-best-match "${torch_cpu[@]}"
lock cuda "The CUDA 13 build of vLLM: the full closure, nothing left out."
