#!/usr/bin/env bash
# tools/clients.sh [NAME…]: installs the Python clients of the tests, each into an environment of its own below
# build/py-clients, and what a SOCKS proxy needs. Their tests are skipped without it. LiteLLM and aider take five
# minutes each. open-webui is installed only by name: it brings PyTorch, and takes 7 GB. With uv it takes a minute,
# with pip most of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
declare -A packages=(
  [langchain]="langchain-openai==1.7.4 openai==3.57.0"
  [litellm]="litellm[proxy]==1.108.7"
  [aider]="aider-chat==0.86.2"
  [socks]="socksio==1.0.0"
  [open-webui]="open-webui==0.12.4"
)
for name in "${@:-langchain litellm aider socks}"; do
  for one in $name; do
    folder=build/py-clients/$one
    [ -x "$folder/bin/python" ] || .venv/bin/python -m venv "$folder"
    if command -v uv >/dev/null; then
      # shellcheck disable=SC2086
      uv pip install --quiet --python "$folder/bin/python" ${packages[$one]}
    else
      # shellcheck disable=SC2086
      "$folder/bin/pip" --disable-pip-version-check --quiet install ${packages[$one]}
    fi
  done
done
