#!/bin/bash
# Risk: while bytes of a volume are still at its seeder, an application at the new host reads something wrong, or a synced file or an
# acknowledged write is lost with a leecher that is killed, or with a seeder that is; or the seeder goes before it may.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

KILLS=${KILLS:-4}

# seed: seeds a.img as `seeder`, at the same port each time; sets device, if there is one.
seed() {
  start seeder "$BLOCKFERRY" seed "file:$work/a.img" --name seeder --listen "${address:-127.0.0.1:0}" --state-dir "$work/state" \
    --ticket-file "$work/ticket" -v
  device=$line
  [[ $line == blockferry://* ]] || next_line seeder
  address=$(address_of "$line")
}

# leech [OPTION...]: has the volume move to b.img, as `leecher`, or goes on with that; sets device.
leech() {
  start leecher "$BLOCKFERRY" leech "@$work/ticket" --store "file:$work/b.img" --name leecher --host-name b --mode post-copy -v "$@"
  device=$line
  [ -b "$device" ] || fail "leech printed '$device', no block device"
}

# busy: makes files until it cannot any more; a file that it says it synced is in $work/synced.
busy() {
  local number
  number=$(wc -l <"$work/synced")
  while [ ! -e "$work/enough" ]; do
    number=$((number + 1))
    head -c $((number * 977 % 90000)) /dev/urandom >"$work/mnt/file$number" 2>/dev/null || break
    sync "$work/mnt/file$number" "$work/mnt" 2>/dev/null || break
    sha256sum "$work/mnt/file$number" >"$work/sum" 2>/dev/null || break
    cat "$work/sum" >>"$work/synced"
  done
  echo "busy: ended"
}

synced_more() { [ "$(wc -l <"$work/synced")" -gt "$1" ]; }

busy_for_a_while() { wait_until 60 "more files" synced_more $(($(wc -l <"$work/synced") + 15)); }

all_synced() { sha256sum --quiet -c "$work/synced" || fail "a file that was synced is not what was written, $1"; }

phase() { "$BLOCKFERRY" migrate status leecher --json | jq -r .phase; }

is_done() { [ "$(phase)" = "done" ]; }

truncate -s 192M "$work/a.img"
mkfs.ext4 -q "$work/a.img"
touch "$work/synced"
seed
mount_at "$device" "$work/mnt" -o errors=remount-ro
head -c 24M /dev/urandom >"$work/mnt/large"
sync "$work/mnt/large"
sha256sum "$work/mnt/large" >>"$work/synced"
# Nobody reads it, so that there is a rest until it is pulled.
head -c 48M /dev/urandom >"$work/mnt/unread"
sync "$work/mnt/unread"
launch busy busy
busy_for_a_while
leech --rest-rate 512KiB
next_line leecher
echo "moved: $line"
ends_with 0 busy
umount -l "$work/mnt"
mount_at "$device" "$work/mnt" -o errors=remount-ro
all_synced "at the new host"

for kill in $(seq "$KILLS"); do
  same "$(phase)" "pulling the rest" "phase before kill $kill"
  launch busy busy
  busy_for_a_while
  if [ "$kill" = 2 ]; then
    crash seeder
    "$BLOCKFERRY" stop seeder 2>/dev/null || true
    busy_for_a_while
  fi
  crash leecher
  ends_with 0 busy
  umount -l "$work/mnt"
  if [ "$kill" = 2 ]; then seed; fi
  refused "$BLOCKFERRY" mount "file:$work/b.img"
  contains "$message" "still at its seeder" "a mount of a part"
  refused "$BLOCKFERRY" stop seeder
  contains "$message" "has not pulled everything" "a stop of the seeder"
  leech --rest-rate 512KiB
  mount_at "$device" "$work/mnt" -o errors=remount-ro
  all_synced "after kill $kill"
done
same "$(phase)" "pulling the rest" "phase before fio"
load "$work/mnt/load" 24
load_is_whole
umount "$work/mnt"
detach leecher
leech
ends_with 0 seeder
wait_until 60 "the end of the migration" is_done
fsck.ext4 -fn "$device" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
mount_at "$device" "$work/mnt"
all_synced "when all of it is here"
umount "$work/mnt"
detach leecher
[ ! -e "$work/b.img.blockferry-part" ] || fail "the map of what is here is still there"
fsck.ext4 -fn "$work/b.img" >"$work/fsck" 2>&1 || fail "fsck of the file: $(cat "$work/fsck")"

# fio verifies what it writes to the raw device, beside the pull.
rm -f "$work"/?.img "$work"/*.blockferry
head -c 96M /dev/urandom >"$work/a.img"
seed
leech --rest-rate 4MiB
same "$(phase)" "pulling the rest" "the phase when fio begins"
load "$device" 24
load_is_whole
verify_io "$device" 32
ends_with 0 seeder
detach leecher
nothing_left
