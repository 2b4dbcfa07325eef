#!/bin/sh
# Installs the servers that tests of the fleet need: PostgreSQL, Redis, RabbitMQ and libfaketime from this machine's
# Debian (as root; none is started or left to start by itself), and Ceph's S3 in .cache/servers (needs no root).
# What cannot be had is named, and its tests are skipped. Usage: servers.sh
set -eu
cd "$(dirname "$0")/.."
ceph=$PWD/.cache/servers/ceph
# The release that has a Ceph whose S3 needs no more than this.
release=trixie
scratch='' policy=''

clean() {
    [ -z "$policy" ] || rm -f "$policy"
    [ -z "$scratch" ] || rm -rf "$scratch"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

missing() {
    ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || echo postgresql
    PATH=$PATH:/usr/sbin command -v redis-server >/dev/null 2>&1 || echo redis-server
    [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || echo rabbitmq-server
    ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || echo libfaketime
}

install_packages() {
    echo "Installing" "$@" >&2
    # Debian starts a server as soon as it is installed, unless this forbids it.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" >&2
    for package; do
        case $package in
            postgresql | redis-server) units=$package ;;
            rabbitmq-server) units='rabbitmq-server epmd.socket epmd.service' ;;
            *) units='' ;;
        esac
        for unit in $units; do
            if command -v systemctl >/dev/null 2>&1; then
                systemctl disable "$unit" >/dev/null 2>&1 || true
            elif [ -x "/etc/init.d/$unit" ]; then
                update-rc.d "$unit" disable >/dev/null 2>&1 || true
            fi
        done
    done
    if [ -n "$policy" ]; then
        rm -f "$policy"
        policy=''
    fi
}

# The mirror that this machine's own Debian comes from, as its apt knows it.
mirror() {
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -v release="$codename" '$1 == release && $2 == "main" { print $3; exit }'
}

install_ceph() {
    from=$(mirror)
    [ -n "$from" ]
    echo "Fetching Ceph of $release into .cache/servers" >&2
    mkdir -p "${ceph%/*}"
    scratch=$(mktemp -d "${ceph%/*}/new.XXXXXX")
    mkdir -p "$scratch/lists/partial" "$scratch/archives/partial" "$scratch/tree" "$scratch/ceph/bin" \
        "$scratch/ceph/lib" "$scratch/ceph/classes"
    : >"$scratch/status"
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e "$keys" ] && signed="[signed-by=$keys]" || signed=
    echo "deb $signed $from $release main" >"$scratch/sources"
    cat >"$scratch/apt.conf" <<CONF
Dir::State "$scratch";
Dir::State::status "$scratch/status";
Dir::Cache "$scratch";
Dir::Etc::sourcelist "$scratch/sources";
Dir::Etc::sourceparts "/dev/null";
Acquire::Languages "none";
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
CONF
    export APT_CONFIG="$scratch/apt.conf"
    apt-get update -qq -o APT::Update::Error-Mode=any >&2
    # All that it depends on, less the programs and what only those need.
    names=$(apt-get install -y -qq --print-uris radosgw ceph-mon ceph-osd | awk '{ split($2, part, "_"); print part[1] }' |
        grep -E '^(radosgw|ceph-(base|common|mon|osd)|lib.*|zlib1g)$' |
        grep -v -E '^lib(python|systemd-shared|lvm2|binutils|ctf|gprofng|db5|pam|perl|ext2fs|parted|glib)')
    # shellcheck disable=SC2086 # one word each
    (cd "$scratch/archives" && apt-get download -qq $names >&2)
    for package in "$scratch"/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$scratch/tree" --exclude='./usr/share' --exclude='./etc'
    done
    # Only the files that are used, with the C library of their release.
    root=$scratch/tree/usr
    libraries=$(echo "$root"/lib/*-linux-gnu)
    loader=$(echo "$libraries"/ld-linux*.so.*)
    cp -L "$loader" "$scratch/ceph/lib/ld.so"
    for program in radosgw radosgw-admin ceph-mon ceph-osd monmaptool osdmaptool; do
        cp "$root/bin/$program" "$scratch/ceph/bin/"
    done
    cp -L "$libraries"/rados-classes/*.so "$scratch/ceph/classes/"
    for file in "$scratch"/ceph/bin/* "$scratch"/ceph/classes/*; do
        "$loader" --library-path "$libraries:$libraries/ceph" --list "$file"
    done | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u | xargs -I '{}' cp -L '{}' "$scratch/ceph/lib/"
    "$scratch/ceph/lib/ld.so" --library-path "$scratch/ceph/lib" "$scratch/ceph/bin/radosgw" --version >&2
    touch "$scratch/ceph/complete"
    rm -rf "$ceph"
    mv "$scratch/ceph" "$ceph"
}

if [ "${1:-}" = ceph ]; then
    install_ceph
    exit
fi
packages=$(missing)
if [ -n "$packages" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    # shellcheck disable=SC2086 # one word each
    install_packages $packages
    packages=$(missing)
fi
# shellcheck disable=SC2086 # one line
[ -z "$packages" ] || echo "Tests that need these are skipped, since they are not installed:" $packages >&2

if [ ! -e "$ceph/complete" ]; then
    # In a shell of its own, which ends where a step fails.
    if ! command -v apt-get >/dev/null 2>&1 || ! sh tools/servers.sh ceph; then
        echo "Tests that need S3 are skipped: Ceph of Debian $release cannot be had here." >&2
    fi
fi
