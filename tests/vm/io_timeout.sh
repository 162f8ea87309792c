#!/bin/bash
# Risk: with its server gone a request hangs past its deadline, or the device is of no use when the server is back.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

reads() { timeout 60 dd if="$device" of="$work/read" bs=64k count=16 iflag=direct status=none 2>/dev/null; }

head -c 32M /dev/urandom >"$work/disk.img"
serve server "disk=file:$work/disk.img"
first_ticket=$ticket
attach client "$ticket" --io-timeout 2
reads || fail "the device cannot be read"
crash server
start_s=$SECONDS
status=0
reads || status=$?
[ "$status" -ne 0 ] || fail "a read succeeded without a server"
[ "$status" -ne 124 ] || fail "a read hung for 60 s with a deadline of 2"
[ $((SECONDS - start_s)) -ge 1 ] || fail "a read failed before its deadline"
[ -b "$device" ] || fail "the device went away with its server"
! gone "${pid_of[client]}" || fail "the client ended with its server"

address=$(address_of "$first_ticket") serve server "disk=file:$work/disk.img"
wait_until 60 "the device to work again" reads
cmp -n $((1 << 20)) "$work/read" "$work/disk.img" || fail "other bytes after the restart"
verify_io "$device" 8
detach client
detach server
nothing_left
