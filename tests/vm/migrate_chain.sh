#!/bin/bash
# Risk: a file system that moves there and back again and again, each time from the process that it has come to, loses a file that was
# synced, or is damaged.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

ROUND_TRIPS=10
FILES_A_MOVE=4

# service NAME: the options by which NAME seeds, with a ticket of its own.
service() {
  service=(--name "$1" --listen 127.0.0.1:0 --state-dir "$work/state" --ticket-file "$work/$1.ticket" -v)
}

# arrive NAME: takes the two lines of who has the volume now; sets device.
arrive() {
  device=$line
  [ -b "$device" ] || fail "$1 printed '$device', no block device"
  next_line "$1"
  [[ $line == blockferry://* ]] || fail "$1 printed '$line', no ticket"
}

# busy: makes, renames and syncs files until it cannot any more, and checks an older one each time; a file that it says it synced is in
# $work/synced.
busy() {
  local number
  number=$(wc -l <"$work/synced")
  while :; do
    number=$((number + 1))
    head -c $((number * 977 % 50000)) /dev/urandom >"$work/mnt/new" 2>/dev/null || break
    sync "$work/mnt/new" 2>/dev/null || break
    mv "$work/mnt/new" "$work/mnt/file$number" 2>/dev/null || break
    sync "$work/mnt" 2>/dev/null || break
    sha256sum "$work/mnt/file$number" >"$work/sum" 2>/dev/null || break
    cat "$work/sum" >>"$work/synced"
    sed -n "$((RANDOM % number + 1))p" "$work/synced" >"$work/older"
    if ! sha256sum --status -c "$work/older" 2>/dev/null && [ -r "$work/mnt/file$number" ]; then
      cat "$(cut -d' ' -f3 "$work/older")" >/dev/null 2>&1 || break # It fails: the volume has moved.
      echo "differs: $(cat "$work/older")" >"$work/wrong"
    fi
  done
  echo "busy: ended"
}

synced_more() { [ "$(wc -l <"$work/synced")" -gt "$1" ]; }

truncate -s 32M "$work/a.img"
mkfs.ext4 -q "$work/a.img"
touch "$work/synced"
service host0
start host0 "$BLOCKFERRY" seed "file:$work/a.img" "${service[@]}"
arrive host0
from=a to=b
for move in $(seq $((2 * ROUND_TRIPS))); do
  old=host$((move - 1)) new=host$move
  mount_at "$device" "$work/mnt" -o errors=remount-ro
  launch busy busy
  wait_until 60 "files before move $move" synced_more $(($(wc -l <"$work/synced") + FILES_A_MOVE))
  service "$new"
  start "$new" "$BLOCKFERRY" leech "@$work/$old.ticket" --store "file:$work/$to.img" --host-name "host of $to" "${service[@]}"
  arrive "$new"
  next_line "$new"
  echo "move $move from $from to $to: $line"
  ends_with 0 busy
  [ ! -e "$work/wrong" ] || fail "$(cat "$work/wrong")"
  umount -l "$work/mnt"
  ends_with 0 "$old"
  mount_at "$device" "$work/mnt"
  sha256sum --quiet -c "$work/synced" || fail "a file that was synced is not what was written, after move $move"
  umount "$work/mnt"
  [ $((move % 4)) -ne 0 ] || fsck.ext4 -fn "$device" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
  last=$from from=$to to=$last
done
refused "$BLOCKFERRY" mount "file:$work/b.img"
contains "$message" "moved to host of a (epoch $((2 * ROUND_TRIPS)))" "a mount of what was left"
detach "$new"
nothing_left
