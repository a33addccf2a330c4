#!/bin/sh
# Builds the image's program, and says where it is:  deploy/build.sh [PROFILE [ARGUMENTS...]]
#
# PROFILE is cargo's, release where it is not named, and ARGUMENTS are rustc's, for the program alone. Needs the toolchain
# and a C compiler with the C library's static part (libc6-dev). This is the one place that says how what is shipped is
# linked: the image, its tests and the benches all have it from here.
set -eu
profile=${1:-release}
[ $# = 0 ] || shift
cd "$(dirname "$0")/.."

# A target of its own keeps the flag from what runs during the build. glibc looks up names in /etc/hosts and by DNS
# without any library beside it from 2.34 on.
target=$(rustc -vV | sed -n 's/^host: //p')
case $target in
*-linux-gnu) ;;
*) echo "the image is built on Linux with glibc, and this is $target" >&2; exit 1 ;;
esac
[ "$profile" = dev ] && folder=debug || folder=$profile
folder=${CARGO_TARGET_DIR:-target}/$target/$folder

# Cargo does not know that the program is made of this as well.
[ ! deploy/order.ld -nt "$folder/pglease" ] || rm -f "$folder"/deps/pglease-*
# Relocations are read at the start, all of them: packed they take a tenth. What every proxy calls lies together, so that
# less of the rest is in memory: names of the kind v0 tell instances of a generic function apart by its types.
RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs -C symbol-mangling-version=v0" \
    cargo rustc --locked --bin pglease --profile "$profile" --target "$target" -- \
    -C link-arg=-Wl,-T,deploy/order.ld "$@" >&2
realpath "$folder/pglease"
