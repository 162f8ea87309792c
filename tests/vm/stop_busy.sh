#!/bin/bash
# Risk: stop pulls a device from under a file system unasked, does not say who holds it, or cannot be made to.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

prepare() {
  attach "$1" mem:64MiB
  mkfs.ext4 -q "$device"
  mount_at "$device" "$work/mnt"
  echo world >"$work/mnt/hello"
  sync -f "$work/mnt"
}

# A signal counts for itself a second after the one before.
interrupted_again() { kill -INT "${pid_of[interrupted]}" 2>/dev/null; gone "${pid_of[interrupted]}"; }
log_names_mount() { grep -q "$work/mnt" "$work/$1.log"; }

prepare asked
refused "$BLOCKFERRY" stop asked
contains "$message" "$work/mnt" "who holds the device, by stop"
same "$(cat "$work/mnt/hello")" world "the file, after a stop that was refused"
umount "$work/mnt"
"$BLOCKFERRY" stop asked || fail "stop failed on a free device"
ends_with 0 asked

prepare interrupted
kill -INT "${pid_of[interrupted]}"
wait_until 30 "who holds the device, by a signal" log_names_mount interrupted
same "$(cat "$work/mnt/hello")" world "the file, after one signal"
wait_until "$STOP_LIMIT_S" "the end after a second signal" interrupted_again
reap interrupted || true
umount -l "$work/mnt"

prepare forced
"$BLOCKFERRY" stop forced --force || fail "stop --force failed"
wait_until "$STOP_LIMIT_S" "the end after stop --force" gone "${pid_of[forced]}"
reap forced || true
umount -l "$work/mnt"

# What can be recovered takes no writes any more while it is stopped; what was written before that is there all the same.
truncate -s 64M "$work/disk.img"
attach kept "file:$work/disk.img"
mkfs.ext4 -q "$device"
mount_at "$device" "$work/mnt"
head -c 5000000 /dev/urandom >"$work/mnt/data"
written=$(checksum "$work/mnt/data")
"$BLOCKFERRY" stop kept --force || fail "stop --force failed"
ends_with 0 kept
umount -l "$work/mnt"
mount_at "$work/disk.img" "$work/mnt" -o loop
same "$(checksum "$work/mnt/data")" "$written" "a file that was never synced, after a forced stop"
umount "$work/mnt"
nothing_left
