#!/bin/sh
# Usage: tools/setup.sh [base|train|dev]
# Makes .venv and installs this checkout into it, with the versions of constraints.txt, then compiles the kernels once.
# Needs Python 3.11 to 3.13 with venv, or uv.
set -eu
level=${1:-base}
venv=${VENV:-.venv}
cd "$(dirname "$0")/.."

stop() {
    echo "setup: $*" >&2
    exit 4
}

# Without .pyc files importing Beam takes 5 seconds instead of 2, in every process.
unset PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME || true

usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

make_venv() {
    for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if usable "$python"; then
            "$python" -m venv "$venv"
            return
        fi
    done
    if [ -z "${PYTHON:-}" ] && command -v uv >/dev/null; then
        uv venv -q --seed --python 3.12 "$venv" ||
            stop "uv could not provide Python 3.12: install Python 3.11, 3.12 or 3.13 and run this again"
        return
    fi
    python=${PYTHON:-python3}
    command -v "$python" >/dev/null ||
        stop "Python 3.11, 3.12 or 3.13 is needed, and $python is not on PATH"
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' ||
        stop "Python 3.11, 3.12 or 3.13 is needed, found $("$python" --version 2>&1): run again with PYTHON=/path/to/one"
    stop "this Python has no venv module: run 'apt install python3-venv' (Debian, Ubuntu), then this again"
}

if ! "$venv/bin/python" -c '' 2>/dev/null; then
    rm -rf "$venv"
    make_venv
fi
python=$venv/bin/python
"$python" -m uv --version >/dev/null 2>&1 ||
    "$python" -m pip install -q --disable-pip-version-check uv ||
    stop "the package index cannot be reached (see the lines above)"

set -- -c constraints.txt
case $level in
base) target=. ;;
train | dev) target=".[$level]" ;;
*) stop "no level '$level': use base, train or dev" ;;
esac
# By path, so that a folder called `pipeline` in the working directory does not hide the package.
"$python" -m uv pip install -q --python "$python" --config-setting editable_mode=compat "$@" -e "$target" ||
    stop "the install failed (see the lines above)"
echo "setup: compiling the kernels (once)" >&2
"$python" -m pipeline.engine.jit
