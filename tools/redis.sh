#!/usr/bin/env bash
# Installs redis-server for the tests of the Redis tier, where it is missing and this user may. Never fails the set-up:
# without it those tests are skipped by name.
set -uo pipefail
command -v redis-server >/dev/null && exit 0

skip() {
  echo "make setup: $*; the Redis tests will be skipped" >&2
  exit 0
}

command -v apt-get >/dev/null || skip "no redis-server and no apt-get found"
[ "$(id -u)" = 0 ] || skip "no redis-server found (as root: apt-get install redis-server)"

# The tests start servers of their own: the package's service must not come up on this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install --yes --no-install-recommends -qq redis-server)
echo "installing redis-server (for the tests only)" >&2
"${install[@]}" >/dev/null 2>&1 || { apt-get update -qq >/dev/null 2>&1 && "${install[@]}" >/dev/null 2>&1; } ||
  skip "apt-get could not install redis-server"
