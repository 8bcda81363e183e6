#!/usr/bin/env bash
# tools/clients.sh [NAME…]: installs the Python clients of the tests, each into an environment of its own below
# build/py-clients, and what a SOCKS proxy needs. Their tests are skipped without it. LiteLLM and aider take five
# minutes each.
set -euo pipefail
cd "$(dirname "$0")/.."
declare -A packages=(
  [langchain]="langchain-openai==1.7.4 openai==3.57.0"
  [litellm]="litellm[proxy]==1.108.7"
  [aider]="aider-chat==0.86.2"
  [socks]="socksio==1.0.0"
)
for name in "${@:-langchain litellm aider socks}"; do
  for one in $name; do
    folder=build/py-clients/$one
    [ -x "$folder/bin/pip" ] || .venv/bin/python -m venv "$folder"
    # shellcheck disable=SC2086
    "$folder/bin/pip" --disable-pip-version-check --quiet install ${packages[$one]}
  done
done
