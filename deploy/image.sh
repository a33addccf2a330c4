#!/bin/sh
# Assembles what the image is made of:  deploy/image.sh FOLDER [PROFILE]
#
# FOLDER must not be there yet. Needs what deploy/build.sh does, which takes PROFILE, and the package ca-certificates.
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

program=$(deploy/build.sh "$profile")
mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs"
cp "$program" "$root/usr/local/bin/pglease"
cp "$roots" "$root/etc/ssl/certs/"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
