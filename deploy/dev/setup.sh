#!/usr/bin/env bash
# Makes .venv from uv.lock: `setup.sh run` with what the demo needs, `dev` with the extras and the tools, `train` with
# PyTorch besides.
# `setup.sh node` puts Node.js and npm into .cache/servers/node instead, for a test server (deploy/dev/azurite).
# Needs Python 3.11 or 3.12 and a way to a package index; neither root, nor pip, nor uv, nor python3-venv.
# Safe to repeat: with nothing changed it is done at once. PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. deploy/dev/lib.sh

UV_VERSION=0.13.9
level=${1:-run}
case $level in
    run) groups=(--no-dev) sufficient=(run dev train) ;;
    dev) groups=(--all-extras) sufficient=(dev train) ;;
    train) groups=(--all-extras --group training) sufficient=(train) ;;
    node) groups=() sufficient=() ;;
    *) die "unknown level \"$level\": run, dev, train or node" ;;
esac

# The place is part of the stamp: scripts in .venv/bin and the editable install hold absolute paths.
wanted=$({ printf '%s\n' "$PWD" "${PYTHON:-}"; cat uv.lock pyproject.toml; } | sha256sum)
for done_level in "${sufficient[@]}"; do
    stamp=.venv/.set-up-$done_level
    if [ -x .venv/bin/python ] && [ -f "$stamp" ] && [ "$(<"$stamp")" = "$wanted" ]; then exit 0; fi
done

# Prints the interpreter to use. Candidates are run, not only looked up: pyenv leaves shims that refuse to start.
find_python() {
    local candidate
    for candidate in ${PYTHON:-.venv/bin/python python3.12 python3.11 python3}; do
        "$candidate" -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13); print(sys.executable)' \
            2>/dev/null </dev/null && return
    done
    return 1
}

# Sets the array `pip` to a command that runs pip: the interpreter's own, one from ensurepip, or the wheel that
# Debian and Ubuntu ship for python3-venv.
find_pip() {
    local wheels=.cache/pip
    pip=("$python" -m pip)
    "${pip[@]}" --version >/dev/null 2>&1 && return
    if "$python" -c 'import ensurepip' 2>/dev/null && "$python" -m venv .cache/pip-venv >/dev/null 2>&1; then
        pip=(.cache/pip-venv/bin/python -m pip)
        return
    fi
    say "no pip here: unpacking Debian's python3-pip-whl into $wheels"
    unpack_debian "$wheels" python3-pip-whl || return 1
    pip=("$python" "$(echo "$wheels"/usr/share/python-wheels/pip-*.whl)/pip")
}

# Behind a proxy that re-signs TLS the certificates of the system, or those named for pip, must count for uv as well.
trust_certificates() {
    local system=/etc/ssl/certs/ca-certificates.crt
    if [ -z "${SSL_CERT_FILE:-}" ]; then
        if [ -n "${PIP_CERT:-${REQUESTS_CA_BUNDLE:-}}" ]; then
            export SSL_CERT_FILE=${PIP_CERT:-$REQUESTS_CA_BUNDLE}
        elif [ -f "$system" ]; then
            export UV_SYSTEM_CERTS=1 PIP_CERT=$system
        fi
    fi
}

python=$(find_python) || die "needs Python 3.11 or 3.12${PYTHON:+, and PYTHON=$PYTHON is neither}:" \
    "apt-get install python3, or set PYTHON=/path/to/python"
trust_certificates

uv=.cache/uv-$UV_VERSION/bin/uv
if ! "$uv" --version >/dev/null 2>&1; then
    find_pip || die "needs pip to fetch uv: apt-get install python3-venv (or python3-pip), then try again"
    say "fetching uv $UV_VERSION"
    "${pip[@]}" install --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: --upgrade \
        --target ".cache/uv-$UV_VERSION" "uv==$UV_VERSION" </dev/null
fi

unset VIRTUAL_ENV
export UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=.venv
[ -w "${HOME:-/nonexistent}" ] || export UV_CACHE_DIR=$PWD/.cache/uv-cache # service accounts have no home
if [ "$level" = node ]; then
    "$uv" pip install --quiet --python "$python" --no-deps --require-hashes --reinstall \
        --target .cache/servers/node -r deploy/dev/azurite/node.txt </dev/null
    exit
fi
say "making .venv ($level) with $python"
# Inexact: what a developer or an earlier `train` added stays.
"$uv" sync --frozen --inexact --python "$python" "${groups[@]}" </dev/null
printf '%s\n' "$wanted" >".venv/.set-up-$level"
