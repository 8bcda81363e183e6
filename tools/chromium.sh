#!/usr/bin/env bash
# Installs a headless Chromium for the tests of the page (`cwm ui`), where none is found and this user may. Never fails
# the set-up: without it those tests are skipped by name.
set -uo pipefail
for name in chromium-headless-shell chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done

skip() {
  echo "make setup: $*; the tests of the page will be skipped" >&2
  exit 0
}

command -v apt-get >/dev/null || skip "no Chromium and no apt-get found"
[ "$(id -u)" = 0 ] || skip "no Chromium found (as root: apt-get install chromium)"

export DEBIAN_FRONTEND=noninteractive
install() {
  timeout 300 apt-get install --yes --no-install-recommends -qq "$@" fonts-dejavu-core >/dev/null 2>&1
}
echo "installing Chromium (for the tests only)" >&2
# The shell alone is smaller; older distributions have the whole browser only.
install chromium-headless-shell || { apt-get update -qq >/dev/null 2>&1 && install chromium-headless-shell; } ||
  install chromium || skip "apt-get could not install Chromium"
