#!/bin/bash
# Risk: a file system that is in use while its volume moves loses a file that was synced, or is damaged; or the volume can be used at
# both ends.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

MOVES=6

# seed FILE: seeds it as `seeder`; sets device.
seed() {
  start seeder "$BLOCKFERRY" seed "file:$1" --name seeder --listen 127.0.0.1:0 --state-dir "$work/state" \
    --ticket-file "$work/ticket" -v
  device=$line
  [ -b "$device" ] || fail "seed printed '$device', no block device"
  next_line seeder
  [[ $line == blockferry://* ]] || fail "seed printed '$line', no ticket"
}

# leech FILE: has the volume move there, as `leecher`; sets device and downtime.
leech() {
  start leecher "$BLOCKFERRY" leech "@$work/ticket" --store "file:$1" --name leecher --host-name "host of $1" -v
  device=$line
  [ -b "$device" ] || fail "leech printed '$device', no block device"
  next_line leecher
  downtime=$line
}

# busy: makes, renames and syncs files until it cannot any more; a file that it says it synced is in $work/synced.
busy() {
  local number
  number=$(wc -l <"$work/synced")
  while [ ! -e "$work/enough" ]; do
    number=$((number + 1))
    head -c $((number * 977 % 200000)) /dev/urandom >"$work/mnt/new$number" 2>/dev/null || break
    sync "$work/mnt/new$number" 2>/dev/null || break
    mv "$work/mnt/new$number" "$work/mnt/file$number" 2>/dev/null || break
    sync "$work/mnt" 2>/dev/null || break
    sha256sum "$work/mnt/file$number" >"$work/sum" 2>/dev/null || break
    cat "$work/sum" >>"$work/synced"
  done
  echo "busy: ended"
}

synced_more() { [ "$(wc -l <"$work/synced")" -gt "$1" ]; }

truncate -s 192M "$work/a.img"
mkfs.ext4 -q "$work/a.img"
touch "$work/synced"
from=a to=b
for move in $(seq "$MOVES"); do
  seed "$work/$from.img"
  mount_at "$device" "$work/mnt" -o errors=remount-ro
  launch busy busy
  wait_until 60 "files before move $move" synced_more $(($(wc -l <"$work/synced") + 20))
  leech "$work/$to.img"
  echo "move $move from $from to $to: $downtime"
  ends_with 0 busy
  umount -l "$work/mnt"
  ends_with 0 seeder
  refused "$BLOCKFERRY" mount "file:$work/$from.img"
  contains "$message" "moved to host of $work/$to.img (epoch $move)" "a mount of what was left"
  mount_at "$device" "$work/mnt"
  sha256sum --quiet -c "$work/synced" || fail "a file that was synced is not what was written, after move $move"
  umount "$work/mnt"
  fsck.ext4 -fn "$device" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
  detach leecher
  last=$from from=$to to=$last
done
nothing_left
