#!/bin/bash
# Risk: something is written to what was mounted or served read-only.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

# check WHERE: the device refuses writes, and its file system can be read.
check() {
  same "$(blockdev --getro "$device")" 1 "$1: the device's read-only flag"
  ! dd if=/dev/zero of="$device" bs=4k count=1 oflag=direct status=none 2>/dev/null || fail "$1: the device was written"
  ! blkdiscard "$device" 2>/dev/null || fail "$1: the device was discarded"
  mount_at "$device" "$work/mnt" -o ro
  same "$(cat "$work/mnt/hello")" world "$1: the file"
  umount "$work/mnt"
}

truncate -s 32M "$work/disk.img"
mkfs.ext4 -q "$work/disk.img"
mount_at "$work/disk.img" "$work/mnt" -o loop
echo world >"$work/mnt/hello"
umount "$work/mnt"
before=$(checksum "$work/disk.img")

attach direct "file:$work/disk.img" --read-only
check direct
detach direct
serve server "disk=file:$work/disk.img"
attach remote "$ticket" --read-only
check remote
detach remote
detach server
serve guarded "disk=file:$work/disk.img" --read-only
attach served "$ticket" --read-only
check served
detach served
detach guarded
same "$(checksum "$work/disk.img")" "$before" "content of the file"
nothing_left
