#!/bin/bash
# Risk: what is written to the device is not in the file, on tmpfs, ext4 and xfs; or the file is left locked or grown.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

# check FOLDER: a device on a file there.
check() {
  local file=$1/disk.img written
  truncate -s 64M "$file"
  attach file "file:$file"
  refused "$BLOCKFERRY" mount "file:$file" --direct --name second
  verify_io "$device" 16
  written=$(checksum "$device")
  detach file
  same "$(stat -c %s "$file")" $((64 << 20)) "size of the file on $1"
  same "$(checksum "$file")" "$written" "content of the file on $1"
  attach file "file:$file"
  same "$(checksum "$device")" "$written" "content of the device, attached again"
  detach file
}

check "$work"
mkdir "$work/shm"
mount_at tmpfs "$work/shm" -t tmpfs -o size=200m
check "$work/shm"
for kind in ext4 xfs; do
  truncate -s 400M "$work/$kind.img"
  "mkfs.$kind" -q "$work/$kind.img"
  mount_at "$work/$kind.img" "$work/$kind" -o loop
  check "$work/$kind"
  umount "$work/$kind"
done
nothing_left
