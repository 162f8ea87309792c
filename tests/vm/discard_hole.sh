#!/bin/bash
# Risk: a discard does not reach the file as a hole, or takes more than its range.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

file=$work/disk.img
truncate -s 64M "$file"

# check ROUTE: writes all of it, discards the middle.
check() {
  local before
  dd if=/dev/urandom of="$device" bs=1M count=64 oflag=direct conv=fsync status=none
  before=$(checksum <(dd if="$device" bs=1M count=16 status=none))
  [ "$(allocated_kib "$file")" -ge $((63 << 10)) ] || fail "$1: written blocks are not in the file"
  blkdiscard --offset $((16 << 20)) --length $((32 << 20)) "$device"
  blockdev --flushbufs "$device"
  [ "$(allocated_kib "$file")" -le $((33 << 10)) ] || fail "$1: the discard left $(allocated_kib "$file") KiB in the file"
  only_zeros "$device" $((16 << 20)) $((32 << 20)) || fail "$1: discarded blocks do not read as zeros"
  same "$(checksum <(dd if="$device" bs=1M count=16 iflag=direct status=none))" "$before" "$1: blocks before the discarded"
}

attach direct "file:$file"
check direct
detach direct

serve server "disk=file:$file"
attach remote "$ticket"
check remote
detach remote
detach server
nothing_left
