#!/usr/bin/env bash
# Installs what building and testing Headworks need and this machine lacks; `make setup` runs it, as often as you like.
#
#   setup.sh build    a Rust toolchain and a C compiler (only looked at and, on Debian, the compiler installed)
#   setup.sh test     that, PostgreSQL and its driver for Java, PgBouncer, the Python packages of requirements.txt in .venv, and
#                     cargo's own test tools
#
# On Debian and its kin packages come from apt-get, as root or through sudo. Elsewhere it says what to install by hand.
set -euo pipefail
cd "$(dirname "$0")/.."

nextest_version=0.9.143
deny_version=0.20.2

say() { echo "setup: $*" >&2; }
fail() {
    say "$1"
    shift
    for hint in "$@"; do echo "hint: $hint" >&2; done
    exit 1
}

# Installs Debian packages for what is named first, or says which.
debian_packages() {
    local what=$1
    shift
    local as_root=()
    if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
    if ! command -v apt-get >/dev/null || { [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; }; then
        fail "$what is missing and can't be installed from here" \
            "install it by hand; on Debian: sudo apt-get install $*"
    fi
    say "$what is missing: installing $*"
    [ -n "${apt_updated:-}" ] || "${as_root[@]}" apt-get update -qq
    apt_updated=1
    # Slim images lack this folder, and Java's installation fails without it.
    "${as_root[@]}" mkdir -p /usr/share/man/man1
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

need_cargo() {
    command -v cargo >/dev/null || fail "cargo is missing" "install Rust from https://rustup.rs"
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n1)" != "$wanted" ]; then
        fail "rustc is $found, and Headworks needs $wanted" "rustup update"
    fi
}

need_compiler() {
    command -v cc >/dev/null || debian_packages "a C compiler" gcc libc6-dev
}

# The first Python from 3.9 on that can make environments.
find_python() {
    local python
    for python in "${PYTHON:-}" python3 python3.{14,13,12,11,10,9}; do
        if [ -n "$python" ] && command -v "$python" >/dev/null &&
            "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
            echo "$python"
            return 0
        fi
    done
    return 1
}

need_postgres() {
    if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && ! command -v initdb >/dev/null; then
        debian_packages "a PostgreSQL server" postgresql
    fi
    if [ "$(id -u)" = 0 ]; then
        command -v setpriv >/dev/null || debian_packages "setpriv" util-linux
    fi
}

need_pgbouncer() {
    command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || debian_packages "PgBouncer" pgbouncer
}

# pgjdbc, which tests/it/clients/pgjdbc.py of the wire drives from Python.
need_jdbc() {
    command -v java >/dev/null || debian_packages "Java" default-jre-headless
    [ -f /usr/share/java/postgresql.jar ] || debian_packages "PostgreSQL's driver for Java" libpostgresql-jdbc-java
}

# The tests of full disks mount small ones.
need_namespaces() {
    { command -v unshare && command -v nsenter; } >/dev/null || debian_packages "unshare or nsenter" util-linux
}

need_python_packages() {
    local wanted=testkit/requirements.txt have=.venv/requirements.txt
    if [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null && cmp -s "$wanted" "$have"; then return 0; fi
    find_python >/dev/null || debian_packages "a Python from 3.9 on with venv" python3 python3-venv
    local python
    python=$(find_python) || fail "no Python from 3.9 on was found" "name one: make setup PYTHON=/path/to/python3"
    say "putting the Python packages of $wanted into .venv"
    "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$wanted"
    cp "$wanted" "$have"
}

# A cargo command from crates.io, built once and kept in cargo's own folder.
need_cargo_command() {
    local command=$1 version=$2
    if cargo "$command" --version >/dev/null 2>&1; then return 0; fi
    say "cargo-$command is missing: building version $version, some minutes once"
    cargo install --quiet --locked "cargo-$command@$version"
}

need_cargo
need_compiler
if [ "${1:-test}" = test ]; then
    need_postgres
    need_pgbouncer
    need_jdbc
    need_namespaces
    need_python_packages
    need_cargo_command nextest "$nextest_version"
    need_cargo_command deny "$deny_version"
fi
