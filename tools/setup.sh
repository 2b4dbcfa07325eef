#!/bin/sh
# Makes the virtual environment and installs pinned dependencies and this project into it, by uv, or by pip where uv cannot.
# Usage: setup.sh PYTHON VENV REQUIREMENTS...
set -eu
python=$1 venv=$2
shift 2

if ! command -v "$python" >/dev/null 2>&1; then
    echo "There is no $python on this machine. Install Python 3.11 or newer, or name yours: make PYTHON=python3.12 ..." >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is $("$python" --version), but Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2
    exit 1
fi
if [ ! -x "$venv/bin/pip" ]; then
    # Debian keeps what venv needs in a package of its own.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "The Python module venv is missing." >&2
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
            apt-get update -qq && apt-get install -y -qq python3-venv
        else
            echo "Install it, on Debian and Ubuntu: sudo apt install python3-venv" >&2
            exit 1
        fi
    fi
    echo "Making a virtual environment in $venv" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
# A file names all that is needed, and what is never imported need not be compiled.
by_pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --no-compile -r "$1"; }
by_uv() { "$venv/bin/python" -m uv pip install --quiet --python "$venv/bin/python" --require-hashes --no-deps -r "$1"; }

by_pip requirements/build.txt
for file in "$@"; do
    echo "Installing $file" >&2
    # Only pip knows of a mirror that pip was told of.
    by_uv "$file" || { echo "uv cannot; pip tries" >&2; by_pip "$file"; }
done
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
