# What scripts/demo and scripts/test have in common: Debian packages and the virtual environment .venv. Sourced, not run.

root=$(cd "$(dirname "$0")/.." && pwd)
venv="$root/.venv"
PATH="$PATH:/usr/sbin:/sbin"
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() {
    printf '%s\n' "$*" >&2
}

need_root() {
    if [ "$(id -u)" -ne 0 ]; then
        say "$1 must run as root: it makes network namespaces, and addresses and firewall rules in them."
        say "Nothing outside of those namespaces is changed, but for Debian packages that are missing. Try: sudo $1"
        exit 1
    fi
}

# install_packages COMMAND PACKAGE...: install the packages whose commands are missing.
install_packages() {
    missing=""
    while [ $# -gt 0 ]; do
        command -v "$1" >/dev/null || missing="$missing $2"
        shift 2
    done
    [ -z "$missing" ] || apt_install $missing
}

# quietly COMMAND...: run it, and show what it printed only if it fails.
quietly() {
    log=$(mktemp)
    status=0
    "$@" >"$log" 2>&1 </dev/null || status=$?
    [ $status -eq 0 ] || cat "$log" >&2
    rm -f "$log"
    return $status
}

# Install Debian packages, and keep the daemons in them from starting, now and at the next boot.
apt_install() {
    if ! command -v apt-get >/dev/null; then
        say "These packages are missing, and there is no apt-get to install them:" "$@"
        exit 1
    fi
    say "Installing Debian packages:" "$@"
    policy=/usr/sbin/policy-rc.d
    ours=""
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        ours=$policy
        trap 'rm -f "$ours"' EXIT
    fi
    quietly apt-get update || say "apt-get update failed; going on with the package lists that there are."
    quietly apt-get install --yes --no-install-recommends "$@"
    case " $* " in
    *" etcd-server "*) if command -v systemctl >/dev/null; then systemctl disable --quiet etcd.service >&2 || true; fi ;;
    esac
    if [ -n "$ours" ]; then
        rm -f "$ours"
        trap - EXIT
    fi
}

fits() {
    command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

# Set $python to a Python of 3.10 or later that can make virtual environments.
find_python() {
    for python in python3 /usr/bin/python3 python3.13 python3.12 python3.11 python3.10; do
        if fits "$python" && "$python" -c 'import ensurepip, venv' 2>/dev/null; then return; fi
    done
    apt_install python3 python3-venv
    python=/usr/bin/python3
    if ! fits "$python"; then
        say "Python 3.10 or later is needed; this Debian has $($python --version)."
        exit 1
    fi
}

# Make .venv, unless it is there and setup.py has not changed since, and install this checkout into it.
make_venv() {
    find_python
    wanted="$(cat "$root/setup.py" "$root/pyproject.toml" | sha256sum) $("$python" -c 'import sys; print(sys.version)')"
    if [ "$(cat "$venv/.made-for" 2>/dev/null)" != "$wanted" ]; then
        say "Making the virtual environment .venv with $("$python" --version) (this takes a minute, once)"
        rm -rf "$venv"
        "$python" -m venv "$venv"
        in_copy "$venv/bin/pip" install --quiet "COPY[dev]"
        printf '%s\n' "$wanted" >"$venv/.made-for"
        sources >"$venv/.installed"
    elif [ "$(cat "$venv/.installed" 2>/dev/null)" != "$(sources)" ]; then
        in_copy "$venv/bin/pip" install --quiet --no-deps --no-build-isolation --force-reinstall COPY
        sources >"$venv/.installed"
    fi
}

sources() {
    (cd "$root" && find kiwi twisted README.rst -type f -not -name '*.pyc' -not -name dropin.cache -print0 | sort -z | xargs -0 sha256sum)
}

# in_copy COMMAND...: run it with each COPY in its words replaced by a clean copy of what is to be installed, so that building leaves nothing
# in the checkout.
in_copy() {
    copy=$(mktemp -d)
    (cd "$root" && tar -cf - --exclude=__pycache__ --exclude=dropin.cache setup.py pyproject.toml README.rst LICENSE kiwi twisted) |
        tar -xf - -C "$copy"
    status=0
    for word in "$@"; do
        shift
        case "$word" in COPY*) word="$copy${word#COPY}" ;; esac
        set -- "$@" "$word"
    done
    "$@" >&2 || status=$?
    rm -rf "$copy"
    return $status
}
