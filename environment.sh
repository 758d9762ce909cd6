#!/bin/sh
# Runs the book's Python with the given arguments; makes its environment first where needed.
#
# The environment is the activated conda environment if this checkout is installed in it, else
# the folder VENV (.venv), made with PYTHON (python3) from requirements.lock, torch and
# torchvision from TORCH_INDEX if that is set (cpu: PyTorch's own builds without CUDA). The last
# two choices are remembered.
set -eu
cd "$(dirname "$0")"

chosen_venv=${VENV:-}
chosen_python=${PYTHON:-}
chosen_torch=${TORCH_INDEX:-}
venv=${chosen_venv:-.venv}
stamp=$venv/latephase.stamp

# A stranger's settings lead Python, pip or uv to other packages, and make's would reach the
# makes that tests run.
unset CDPATH VENV PYTHON TORCH_INDEX VIRTUAL_ENV MPLBACKEND \
    MAKEFLAGS MAKELEVEL MFLAGS MAKEOVERRIDES \
    $(env | sed -n 's/^\(PYTHON[A-Z0-9_]*\)=.*/\1/p') \
    PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_CONSTRAINT \
    UV_PYTHON UV_SYSTEM_PYTHON UV_CONSTRAINT UV_OVERRIDE
export PYTHONNOUSERSITE=1 PYTHONUTF8=1 JUPYTER_PREFER_ENV_PATH=1

say() { echo "latephase: $*" >&2; }
stop() { say "$*"; exit 2; }

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

# The environment $1 runs, and its latephase is the one of this checkout: false for a foreign
# environment, after the checkout was moved, and after the Python below was replaced.
holds_checkout() {
    [ -x "$1/bin/python" ] && "$1/bin/python" -I -c '
import os, sys, latephase
sys.exit(not os.path.samefile(latephase.__path__[0], "lib/latephase"))' 2>/dev/null
}

# The stamp: what the environment was made from, or who is at work on it and with which choices.
recorded() { if [ -f "$stamp" ]; then sed -n "s|^$1 ||p" "$stamp"; fi; }
write_stamp() {
    printf '%s\n' "$@" "python $python" "torch $torch" > "$stamp.new" && mv "$stamp.new" "$stamp"
}

# The entries of requirements.lock, hashes included, whose names match $1, or all the others.
locked() { awk -v name="^($1)==" '/^[a-z0-9]/ { on = $0 ~ name } on' requirements.lock; }
locked_except() { awk -v name="^($1)==" '/^[a-z0-9]/ { on = $0 !~ name } on' requirements.lock; }

# What is installed in the environment $1 is what requirements.lock asks for.
matches_lock() {
    "$1/bin/python" -m uv pip install --python "$1/bin/python" --offline --dry-run \
        --require-hashes --requirement requirements.lock 2>&1 | grep -q 'no changes'
}

is_ready() {
    [ "$(recorded lock)" = "$lock" ] && [ "$(recorded torch)" = "$torch" ] &&
        { [ -z "$chosen_python" ] ||
            [ "$(version "$python")" = "$(version "$venv/bin/python")" ]; } &&
        holds_checkout "$venv"
}

check_python() {
    case $(version "$python") in
    3.1[1-9] | 3.[2-9][0-9]) return ;;
    '') found='does not run' ;;
    *) found="is Python $(version "$python")" ;;
    esac
    stop "PYTHON=$python $found; name a Python 3.11 or newer, such as PYTHON=python3.12"
}

# Leaves $venv holding nothing but an unfinished stamp, so that it is known as ours all the time.
take_directory() {
    worker=$(recorded unfinished)
    if [ -n "$worker" ] && kill -0 "$worker" 2>/dev/null; then
        stop "process $worker is installing into $venv; wait for it, or remove $venv if it has died"
    fi
    mkdir -p "$venv"
    if [ ! -f "$stamp" ] && [ -n "$(ls -A "$venv")" ]; then
        stop "$venv exists and was not made here; remove it or choose another place with VENV=DIR"
    fi
    write_stamp "unfinished $$"
    for entry in "$venv"/* "$venv"/.[!.]*; do
        [ "$entry" = "$stamp" ] || rm -rf "$entry"
    done
}

install() {
    "$venv/bin/python" -m uv pip install --python "$venv/bin/python" --no-build-isolation $quiet "$@"
}

# latephase's own entry in the environment; the packages are all there already.
install_checkout() { install --no-deps --editable .; }

install_packages() {
    "$python" -m venv "$venv"
    locked 'uv|setuptools' > "$venv/bootstrap.txt"
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps \
        --require-hashes --requirement "$venv/bootstrap.txt"
    if [ -z "$torch" ]; then
        install --require-hashes --requirement requirements.lock
        return
    fi
    locked_except 'torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*' > "$venv/requirements.txt"
    install --require-hashes --requirement "$venv/requirements.txt"
    pair=$(locked 'torch|torchvision' | awk '/^torch/ { print $1 }')
    # Without dependencies and other indexes, nothing but the pair can come from there. Where
    # PyTorch's index of CPU builds is, uv knows.
    case $torch in
    cpu) UV_INDEX='' UV_EXTRA_INDEX_URL='' install --no-deps --torch-backend cpu $pair ;;
    *) UV_INDEX='' UV_EXTRA_INDEX_URL='' install --no-deps --default-index "$torch" $pair ;;
    esac
}

make_environment() {
    check_python
    take_directory
    trap 'say "installation into $venv did not finish; the next make starts it afresh"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    started=$(date +%s)
    say "installing into $venv with Python $(version "$python")"
    install_packages
    install_checkout
    write_stamp "lock $lock" "pyproject $pyproject"
    trap - EXIT INT TERM HUP
    say "installed in $(($(date +%s) - started)) s"
}

prepare_venv() {
    python=${chosen_python:-$(recorded python)}
    python=${python:-python3}
    torch=${chosen_torch:-$(recorded torch)}
    lock=$(cksum < requirements.lock)
    pyproject=$(cksum < pyproject.toml)
    if [ -t 2 ]; then quiet=; else quiet=--quiet; fi
    if ! is_ready; then
        make_environment
    elif [ "$(recorded pyproject)" != "$pyproject" ]; then
        install_checkout
        write_stamp "lock $lock" "pyproject $pyproject"
    fi
    environment=$(cd "$venv" && pwd)
}

environment=
conda=${CONDA_DEFAULT_ENV:-base}
if [ -z "$chosen_venv" ] && [ -n "${CONDA_PREFIX:-}" ] && [ "$conda" != base ]; then
    if holds_checkout "$CONDA_PREFIX"; then
        environment=$CONDA_PREFIX
        matches_lock "$environment" ||
            say "$conda differs from requirements.lock; conda env update -f environment.yml renews it"
    else
        say "the conda environment $conda does not hold this checkout; using $venv"
    fi
fi
[ -n "$environment" ] || prepare_venv
say "environment $environment"
PATH=$environment/bin:$PATH
exec "$environment/bin/python" "$@"
