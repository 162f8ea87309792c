#!/bin/bash
# Risk: a file system over serve and mount is damaged: files differ, fsck complains, or the server's file is another one.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

MIB=400

# check KIND FSCK...
check() {
  local kind=$1 file=$work/$1.img sums=$work/$1.sums
  shift
  truncate -s "${MIB}M" "$file"
  serve server "disk=file:$file"
  attach client "$ticket"
  "mkfs.$kind" -q "$device"
  mount_at "$device" "$work/mnt"
  cp -r /usr/share/perl5 /usr/share/keyrings "$work/mnt/" 2>/dev/null || cp -r /usr/share/keyrings "$work/mnt/"
  head -c 16M /dev/urandom >"$work/mnt/random"
  rm -rf "$work/mnt/keyrings"
  fstrim "$work/mnt"
  (cd "$work/mnt" && find . -type f -exec sha256sum {} +) >"$sums"
  umount "$work/mnt"
  "$@" "$device" || fail "$kind: fsck of the device"
  detach client
  detach server

  mount_at "$file" "$work/mnt" -o loop
  (cd "$work/mnt" && sha256sum --quiet -c "$sums") || fail "$kind: the served file holds other files"
  umount "$work/mnt"
}

check ext4 e2fsck -fn
check xfs xfs_repair -n
nothing_left
