#!/bin/bash
# Risk: a mounted file system is damaged, or sees an error, when the process below it is killed and another one goes on.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"
need_ublk

# busy: makes, renames and syncs files until it is told to end; a file that it says it synced is in $work/synced.
busy() {
  local number=0
  while [ ! -e "$work/enough" ]; do
    number=$((number + 1))
    head -c $((number * 977 % 300000)) /dev/urandom >"$work/mnt/new" || exit 1
    sync "$work/mnt/new" || exit 1
    mv "$work/mnt/new" "$work/mnt/file$number" || exit 1
    sha256sum "$work/mnt/file$number" >>"$work/synced" || exit 1
    [ $((number % 7)) -ne 0 ] || cp -r /usr/share/doc/bash "$work/mnt/tree$number" || exit 1
  done
  echo "busy: done"
}

synced_more() { [ "$(wc -l <"$work/synced")" -gt "$1" ]; }

truncate -s 256M "$work/disk.img"
attach disk "file:$work/disk.img"
mkfs.ext4 -q "$device"
mount_at "$device" "$work/mnt" -o errors=remount-ro
touch "$work/synced"
launch busy busy
for round in 1 2 3 4 5; do
  wait_until 60 "files before round $round" synced_more $(($(wc -l <"$work/synced") + 10))
  crash disk
  recover disk
done
wait_until 60 "files after the last round" synced_more $(($(wc -l <"$work/synced") + 10))
touch "$work/enough"
ends_with 0 busy
grep -q " $work/mnt ext4 rw" /proc/self/mounts || fail "the file system has become read-only"
sha256sum --quiet -c "$work/synced" || fail "a file is not what was written"
umount "$work/mnt"
fsck.ext4 -fn "$device" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
mount_at "$device" "$work/mnt" -o ro
sha256sum --quiet -c "$work/synced" || fail "a file is not what was written, after it was mounted again"
umount "$work/mnt"
detach disk
nothing_left
