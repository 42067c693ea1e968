# shellcheck shell=bash
# Shared by the set-up scripts; sourced, never run. The caller is bash with `set -euo pipefail`, in the repository's root.

say() { printf 'set-up: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# unpack_debian DIR PACKAGE...: unpack packages of the distribution, with what they need and this machine lacks, into DIR.
# Nothing is installed: it works without root, starts no service and leaves the system as it was. apt's own checks
# (signatures, hashes) apply. Status 1 where there is no apt, or no way to its archive.
unpack_debian() {
    local root=$1 work log deb
    shift
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    work=$(mktemp -d) log=$work/log
    chmod 755 "$work" # root's apt downloads as the user _apt
    mkdir -p "$work/lists/partial" "$work/archives/partial"
    # Package lists of our own: a user cannot refresh the system's, and container images ship none.
    # NoLocking: dpkg's lock is root's, and nothing is handed to dpkg.
    local apt=(apt-get -qq -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work" -o Debug::NoLocking=1
        -o Acquire::Retries=3 -o APT::Sandbox::User= -o APT::Install-Recommends=false)
    if "${apt[@]}" update >>"$log" 2>&1 </dev/null &&
        "${apt[@]}" install --yes --reinstall --download-only "$@" >>"$log" 2>&1 </dev/null; then
        mkdir -p "$root"
        for deb in "$work"/archives/*.deb; do
            dpkg-deb --extract "$deb" "$root"
        done
        rm -rf "$work"
        return 0
    fi
    grep -h '^[EW]:' "$log" >&2 || true
    rm -rf "$work"
    return 1
}
