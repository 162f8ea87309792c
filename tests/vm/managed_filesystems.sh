#!/bin/bash
# Risk: a file system on a managed mount is damaged on its way through the local store: files differ, at the device or at the
# origin, fsck complains, or what was trimmed still takes space at the origin.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

MIB=400

# check KIND FSCK...
check() {
  local kind=$1 file=$work/$1.img sums=$work/$1.sums before
  shift
  truncate -s "${MIB}M" "$file"
  "mkfs.$kind" -q "$file"
  mount_at "$file" "$work/mnt" -o loop
  cp -r /usr/share/keyrings "$work/mnt/"
  umount "$work/mnt"

  serve server "disk=file:$file"
  manage client "$ticket"
  mount_at "$device" "$work/mnt"
  diff -r /usr/share/keyrings "$work/mnt/keyrings" || fail "$kind: files of the origin differ on the device"
  cp -r /usr/share/perl5 "$work/mnt/"
  head -c 16M /dev/urandom >"$work/mnt/random"
  sync -f "$work/mnt"
  "$BLOCKFERRY" sync client
  before=$(allocated_kib "$file")
  rm -rf "$work/mnt/random"
  # What a file system has not quite let go of is not trimmed.
  umount "$work/mnt"
  mount_at "$device" "$work/mnt"
  fstrim "$work/mnt"
  (cd "$work/mnt" && find . -type f -exec sha256sum {} +) >"$sums"
  umount "$work/mnt"
  "$@" "$device" || fail "$kind: fsck of the device"
  detach client
  [ "$(allocated_kib "$file")" -lt $((before - 14000)) ] || fail "$kind: what was trimmed still takes $(allocated_kib "$file") KiB of $before"
  detach server

  mount_at "$file" "$work/mnt" -o loop
  (cd "$work/mnt" && sha256sum --quiet -c "$sums") || fail "$kind: the served file holds other files"
  umount "$work/mnt"
}

check ext4 e2fsck -fn
check xfs xfs_repair -n
[ -z "$(ls -A "$work/cache/blockferry/stores")" ] || fail "a store was left: $(ls "$work/cache/blockferry/stores")"
nothing_left
