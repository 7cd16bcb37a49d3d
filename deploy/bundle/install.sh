#!/bin/sh
# Install histofed from this bundle, without a network: ./install.sh COMPONENT...
#
#   agent        a hospital's agent; brings torch
#   aggregator   the centre of a federation
#   tools        the operator's command line, `histofed`
#   torch        libraries for training: at an aggregator, for experiments that begin with fresh networks
#
# Every file is checked before anything is touched. On Debian 12 the packages are installed; elsewhere (RHEL 9 and its kin)
# the same environments and units are laid out from the wheels, for a python3.11 that is there. Nothing is asked, what is
# configured stays as it is, and nothing is started but a daemon that ran before and was stopped for its new version.
set -eu
# what is laid out is read by the daemons' users, whatever root's own habit is
umask 022
# the same at a terminal, in a cron job and where there is no standard input at all
exec </dev/null

prefix=/opt/histofed
bundle=$(cd "$(dirname "$0")" && pwd)

say() { printf 'install.sh: %s\n' "$*"; }
fail() {
    code=$1
    shift
    printf 'install.sh: %s\n' "$*" >&2
    exit "$code"
}

main() {
    [ $# -gt 0 ] || fail 2 "say what to install: agent, aggregator, tools, torch (one or several)"
    for component in "$@"; do
        case $component in
        agent | aggregator | tools | torch) ;;
        *) fail 2 "there is no component '$component'; known are: agent, aggregator, tools, torch" ;;
        esac
    done
    verify
    [ "$(id -u)" -eq 0 ] || fail 77 "the bundle is whole, but only root can install it: run it again with sudo"
    components=$(in_order "$@")
    if is_debian_12; then
        install_packages
    else
        install_wheels
    fi
    say "done: $components. Next: docs/install-hospital.md or docs/install-aggregator.md"
}

# The bundle against its own list; the list's digest is for comparing with whoever made the bundle.
verify() {
    cd "$bundle"
    [ -f SHA256SUMS ] || fail 65 "there is no SHA256SUMS beside install.sh: copy the whole bundle again"
    if ! wrong=$(LC_ALL=C sha256sum --check --quiet --strict SHA256SUMS 2>/dev/null); then
        named=$(printf '%s\n' "$wrong" | sed -n 's/: FAILED.*//p' | paste -s -d ' ')
        fail 65 "not what was bundled: ${named:-SHA256SUMS itself}; nothing was installed; copy the bundle again"
    fi
    # of two bundles in one folder nobody can say which file is meant
    listed=$(listed_files)
    extra=$(find . ! -type d ! -path ./SHA256SUMS | cut -c 3- | LC_ALL=C sort | grep -F -x -v -e "$listed") || [ $? -eq 1 ]
    [ -z "$extra" ] || fail 65 "not part of this bundle: $(echo "$extra" | paste -s -d ' ');" \
        "nothing was installed; unpack the bundle into an empty folder"
    say "all files are as bundled; SHA-256 of the list: $(sha256sum SHA256SUMS | cut -c 1-64)"
}

# Every file's name, as it stands after 64 digits and two blanks.
listed_files() { cut -c 67- "$bundle/SHA256SUMS"; }

# The one file of the list whose name is of this form. A caller assigns it and nothing else, or `set -e` misses a failure.
only() {
    found=$(listed_files | grep -x -e "$1") || found=""
    [ "$(echo "$found" | grep -c .)" -eq 1 ] || fail 65 "SHA256SUMS should list one file $1, and lists: ${found:-none}"
    echo "$bundle/$found"
}

# torch first, where it is asked for or an agent needs it.
in_order() {
    ordered=""
    for each in torch agent aggregator tools; do
        for component in "$@"; do
            if [ "$component" = "$each" ] || { [ "$each" = torch ] && [ "$component" = agent ]; }; then
                ordered="$ordered $each"
                break
            fi
        done
    done
    echo "${ordered# }"
}

is_debian_12() {
    # shellcheck source=/dev/null
    (. /etc/os-release && [ "${ID:-}" = debian ] && [ "${VERSION_ID:-}" = 12 ]) && command -v apt-get >/dev/null
}

# --- Debian 12 ---------------------------------------------------------------------------------------------------------

install_packages() {
    set --
    for component in $components; do
        deb=$(only "debs/histofed-${component}_[^_/]*_amd64\.deb")
        set -- "$@" "$deb"
    done
    # What the packages need from Debian itself is asked of apt's own sources, if it is not there yet. A file below /etc that
    # the site wrote stays, and the package's comes beside it as .dpkg-dist: dpkg would ask, and end half-way unanswered.
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@" ||
        fail 69 "apt could not install the packages; where it names missing ones, install those from your Debian medium first"
}

# --- elsewhere -----------------------------------------------------------------------------------------------------------

install_wheels() {
    python=$(command -v python3.11) || fail 69 "there is no python3.11: install it first (RHEL 9: dnf install python3.11)"
    pip=$(only 'wheels/pip-[^/]*\.whl')
    for component in $components; do
        say "laying out $prefix/$component"
        lay_out "$component"
    done
    # daemons run on while that takes its minutes, and stop for the moment in which everything of theirs is replaced
    stop_daemons
    for component in $components; do
        swap "$component"
        if [ "$component" != torch ]; then
            around "$component"
        fi
    done
    start_daemons
}

# An environment beside the one that is in use.
lay_out() {
    fresh=$prefix/$1.new
    rm -rf "$fresh"
    if [ "$1" = torch ]; then
        packages=$fresh
    else
        packages=$fresh/lib/python3.11/site-packages
        mkdir -p "$fresh/bin"
        ln -s "$python" "$fresh/bin/python3"
        printf 'home = %s\ninclude-system-site-packages = false\n' "$(dirname "$python")" >"$fresh/pyvenv.cfg"
    fi
    mkdir -p "$packages"
    lock=$1
    [ "$1" = agent ] && lock=daemon
    # pip out of its own wheel: the host needs none. What it prints is of interest when it fails.
    PIP_CONFIG_FILE=/dev/null "$python" "$pip/pip" install --quiet --no-index --no-deps \
        --find-links "$bundle/wheels" --require-hashes --no-compile --root-user-action ignore --target "$packages" \
        --requirement "$bundle/wheels/requirements-$lock.txt" ||
        fail 70 "pip could not install $1 from the bundle, see above; $prefix/$1 is as it was"
    rm -rf "${packages:?}/bin"
    find "$packages" -name '*.py' -path '*/_internal/py312_intrinsics.py' -delete
    "$python" -m compileall -q --invalidation-mode unchecked-hash -s "$fresh" -p "$prefix/$1" "$packages"
    if [ "$1" != torch ]; then
        echo "$prefix/torch" >"$packages/histofed-torch.pth"
        launcher "$1" >"$fresh/bin/$(command_of "$1")"
        chmod 755 "$fresh/bin/$(command_of "$1")"
    fi
}

# Python imports late, and half of one version must not meet half of another. Daemons and their trainers import torch too.
stop_daemons() {
    stopped=""
    [ -d /run/systemd/system ] || return 0
    trap not_running_again EXIT
    for each in agent aggregator; do
        case " $components " in
        *" $each "* | *" torch "*) ;;
        *) continue ;;
        esac
        unit=histofed-$each.service
        case $(systemctl is-active "$unit") in
        active | activating | reloading) stopped="$stopped $unit" ;;
        deactivating) ;;
        *) continue ;;
        esac
        say "stopping $unit"
        systemctl stop "$unit"
    done
}

start_daemons() {
    waiting=$stopped
    stopped=""
    for unit in $waiting; do
        systemctl start "$unit" || stopped="$stopped $unit"
    done
    [ -z "$stopped" ] || exit 69
    [ -z "$waiting" ] || say "runs again:$waiting"
}

# At any end after daemons were stopped: what is left of them.
not_running_again() {
    [ -n "$stopped" ] || return 0
    set -f
    # shellcheck disable=SC2086 # several units
    set -- $stopped
    say "stopped, and not running again: $*; see above and: journalctl --unit=$1; then: systemctl start $*" >&2
}

# The environment in the place of the one that was in use.
swap() {
    rm -rf "$prefix/$1.old"
    [ ! -d "$prefix/$1" ] || mv "$prefix/$1" "$prefix/$1.old"
    mv "$prefix/$1.new" "$prefix/$1"
    rm -rf "$prefix/$1.old"
}

command_of() {
    if [ "$1" = tools ]; then echo histofed; else echo "histofed-$1"; fi
}

launcher() {
    case $1 in
    tools) module=histofed.cli.main ;;
    *) module=$1.cli ;;
    esac
    printf '#!%s/bin/python3 -I\nimport sys\n\nfrom %s import main\n\nsys.exit(main())\n' "$prefix/$1" "$module"
}

# What a package would bring besides: the command in PATH, its papers, unit, user and folders. A unit that an administrator
# changes belongs into a drop-in; this file is replaced by the next version.
around() {
    name=$(command_of "$1")
    mkdir -p /usr/local/bin
    ln -sf "$prefix/$1/bin/$name" "/usr/local/bin/$name"
    for page in "$bundle"/man/"$name".[18]; do
        section=${page##*.}
        install -D -m 644 "$page" "/usr/local/share/man/man$section/$name.$section"
    done
    install -D -m 644 "$bundle/completion/$name.bash" "/usr/local/share/bash-completion/completions/$name"
    install -D -m 644 "$bundle/completion/_$name" "/usr/local/share/zsh/site-functions/_$name"
    install -D -m 644 "$bundle/completion/$name.fish" "/usr/local/share/fish/vendor_completions.d/$name.fish"
    [ "$1" != tools ] || return 0
    mkdir -p /etc/systemd/system
    sed "s,/usr/bin/$name,/usr/local/bin/$name," "$bundle/systemd/$name.service" >"/etc/systemd/system/$name.service"
    install -D -m 644 "$bundle/systemd/sysusers.d/$name.conf" "/etc/sysusers.d/$name.conf"
    install -D -m 644 "$bundle/systemd/tmpfiles.d/$name.conf" "/etc/tmpfiles.d/$name.conf"
    systemd-sysusers "$name.conf"
    systemd-tmpfiles --create "$name.conf" || say "systemd-tmpfiles could not make every folder; the unit makes its own"
    if [ "$1" = agent ] && [ ! -e /etc/histofed/consent.toml ]; then
        install -D -m 644 "$bundle/samples/consent.toml" /etc/histofed/consent.toml
    fi
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
}

main "$@"
