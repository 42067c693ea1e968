#!/usr/bin/env bash
# Provides the servers that the tests talk to: Mosquitto, the system's own if there is one, else Debian's or Ubuntu's
# package unpacked into .cache/servers (no root, no service started). The tests start it on a free loopback port.
# Where it cannot be had: one line that says so, and the tests that need it are skipped; with CI=true that is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. deploy/dev/lib.sh

root=$PWD/.cache/servers
unpacked_runs() { [[ $("$root/bin/mosquitto" -h 2>/dev/null) = "mosquitto version"* ]]; }

# Debian puts daemons where a plain user's PATH does not look.
if PATH=$PATH:/usr/local/sbin:/usr/sbin command -v mosquitto >/dev/null; then exit 0; fi
if unpacked_runs; then exit 0; fi

say "unpacking Mosquitto into .cache/servers"
if unpack_debian "$root" mosquitto; then
    mkdir -p "$root/bin"
    for program in "$root"/usr/sbin/mosquitto "$root"/usr/bin/mosquitto_*; do
        # exec: the tests stop the server by the id of the process they started.
        cat >"$root/bin/${program##*/}" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH="$(echo "$root"/usr/lib/*-linux-gnu*)" exec "$program" "\$@"
WRAPPER
        chmod +x "$root/bin/${program##*/}"
    done
    if unpacked_runs; then exit 0; fi
fi
if [ "${CI:-}" = true ]; then
    die "Mosquitto is missing and could not be unpacked; under CI its tests must run: apt-get install mosquitto"
fi
say "Mosquitto is missing and could not be unpacked: the tests over a real broker are skipped (apt-get install mosquitto)"
