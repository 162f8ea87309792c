#!/bin/bash
# Risk: what a file system has cached does not move with its volume though it is frozen for that; or it stays frozen when the volume
# does not move, or has moved.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

truncate -s 96M "$work/a.img"
mkfs.ext4 -q "$work/a.img"
mkdir "$work/mnt"
touch "$work/fails"

start seeder "$BLOCKFERRY" seed "file:$work/a.img" --name seeder --listen 127.0.0.1:0 --state-dir "$work/state" \
  --ticket-file "$work/ticket" --freeze "$work/mnt" --on-after-sync "test ! -e $work/fails" -v
device=$line
next_line seeder
mount_at "$device" "$work/mnt"
echo "not synced, before an attempt that fails" >"$work/mnt/first"
launch leecher "$BLOCKFERRY" leech "@$work/ticket" --store "file:$work/b.img" --name leecher --host-name b
wait_until 60 "an attempt that fails" grep -q "requests go on here" "$work/seeder.log"
timeout 60 sh -c "echo 'not synced either' >$work/mnt/second" || fail "the file system is still frozen"
cp -r /usr/share/doc/bash "$work/mnt/tree"
(cd "$work/mnt" && find . -type f -exec sha256sum {} +) >"$work/sums"
rm "$work/fails"
next_line leecher
there=$line
ends_with 0 seeder
timeout 60 umount "$work/mnt" || fail "the file system that has moved away is still frozen"
mount_at "$there" "$work/mnt"
(cd "$work/mnt" && sha256sum --quiet -c "$work/sums") || fail "what was cached has not moved"
umount "$work/mnt"
fsck.ext4 -fn "$there" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
detach leecher
nothing_left
