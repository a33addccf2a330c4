#!/bin/sh
# Assembles what the image is made of:  deploy/image.sh FOLDER [PROFILE]
#
# FOLDER must not be there yet. PROFILE is cargo's, release where it is not named. Needs the toolchain, a C compiler
# with the C library's static part (libc6-dev), and the package ca-certificates.
set -eu
root=$1
profile=${2:-release}
roots=/etc/ssl/certs/ca-certificates.crt

[ ! -e "$root" ] || { echo "$root is there already" >&2; exit 1; }
[ -s "$roots" ] || { echo "no $roots: apt-get install -y ca-certificates" >&2; exit 1; }
cd "$(dirname "$0")/.."

# What `pglease version --json` names: as told, or of the clone that this is.
: "${PGLEASE_BUILD_COMMIT=$(git rev-parse HEAD 2>/dev/null || true)}"
export PGLEASE_BUILD_COMMIT

# A target of its own keeps the flag from what runs during the build. glibc looks up names in /etc/hosts and by DNS
# without any library beside it from 2.34 on.
target=$(rustc -vV | sed -n 's/^host: //p')
case $target in
*-linux-gnu) ;;
*) echo "the image is built on Linux with glibc, and this is $target" >&2; exit 1 ;;
esac
# Relocations are read at the start, all of them: packed they take a tenth.
RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs" \
    cargo build --locked --bin pglease --profile "$profile" --target "$target"
built=${CARGO_TARGET_DIR:-target}/$target/$profile
[ "$profile" != dev ] || built=${CARGO_TARGET_DIR:-target}/$target/debug

mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs"
cp "$built/pglease" "$root/usr/local/bin/pglease"
cp "$roots" "$root/etc/ssl/certs/"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
