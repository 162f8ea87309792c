#!/bin/bash
# Risk: two hosts write to one volume at once.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

truncate -s 32M "$work/disk.img"
serve server "disk=file:$work/disk.img"
attach first "$ticket"
first_device=$device
dd if=/dev/urandom of="$first_device" bs=1M count=4 oflag=direct conv=fsync status=none

refused "$BLOCKFERRY" mount "$ticket" --direct --name second
contains "$message" "$(hostname)" "who holds the volume"
attach reader "$ticket" --read-only
same "$(checksum "$device")" "$(checksum "$first_device")" "what a reader sees"
detach reader

attach second "$ticket" --takeover
! dd if=/dev/zero of="$first_device" bs=1M count=1 oflag=direct conv=fsync status=none 2>/dev/null ||
  fail "the fenced writer still wrote"
verify_io "$device" 16
written=$(checksum "$device")
# What it holds cannot be flushed any more, so it has to be told to give that up.
! message=$("$BLOCKFERRY" stop first --force 2>&1) || fail "a forced stop says nothing of what could not be flushed"
contains "$message" "is lost" "the message of the forced stop"
wait_until 60 "the end of the fenced writer" gone "${pid_of[first]}"
reap first || true
detach second
detach server
same "$(checksum "$work/disk.img")" "$written" "content of the served file"
nothing_left
