#!/bin/bash
# Risk: a device has another logical block than its server, or its mount, was told to have.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

BYTES=$(((16 << 20) + 512))

# check WHERE BLOCK: the logical block, and the size rounded up to it.
check() {
  same "$(blockdev --getss "$device")" "$2" "$1: logical block"
  same "$(blockdev --getsize64 "$device")" $(((BYTES + $2 - 1) / $2 * $2)) "$1: size"
}

truncate -s "$BYTES" "$work/disk.img"
serve server "disk=file:$work/disk.img" --block-size 4096
attach served "$ticket"
check "serve --block-size 4096" 4096
mkfs.ext4 -q "$device"
detach served
refused "$BLOCKFERRY" mount "$ticket" --direct --block-size 512
contains "$message" "below the resource's own" "a block that is finer than the server's"
detach server

serve server "disk=file:$work/disk.img"
attach plain "$ticket"
check "serve" 512
detach plain
attach own "$ticket" --block-size 2048
check "mount --block-size 2048" 2048
detach own
detach server
nothing_left
