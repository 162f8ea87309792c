#!/bin/bash
# Risk: a leecher whose disk is full takes the volume all the same, or its seeder's application notices; or nothing goes on when there is
# room again.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

VOLUME_MIB=24

# leech_in_vain: the same command as at last; it fails, and says why.
leech_in_vain() {
  refused "$BLOCKFERRY" leech "@$work/ticket" --store "file:$work/disk/b.img" --name leecher --host-name b
  contains "$message" "No space left" "a leecher with a full disk"
}

# goes_on NAME: the program of that name still writes to the seeder's device.
goes_on() {
  local before
  before=$(sectors_written "$device")
  wait_until 60 "$1 goes on" wrote_more "$device" "$before"
  ! gone "${pid_of[$1]}" || fail "$1 has ended"
}

room() { mount -o "remount,size=$1" "$work/disk"; }

mkdir "$work/disk"
mount -t tmpfs -o size=8m none "$work/disk"
mounts+=("$work/disk")
head -c "${VOLUME_MIB}M" /dev/urandom >"$work/a.img"
start seeder "$BLOCKFERRY" seed "file:$work/a.img" --name seeder --listen 127.0.0.1:0 --state-dir "$work/state" \
  --ticket-file "$work/ticket" -v
device=$line
next_line seeder
load "$device" "$VOLUME_MIB"
wait_until 60 "writes under way" wrote_more "$device" 100
leech_in_vain
load_is_whole

launch writer fio --name=writer --filename="$device" --rw=randwrite --bs=4k --size="${VOLUME_MIB}m" --direct=1 --ioengine=psync \
  --rate_iops=500 --loops=1000 --output="$work/writer.fio"
leech_in_vain
goes_on writer
refused "$BLOCKFERRY" mount "file:$work/disk/b.img"
contains "$message" "on its way here" "a mount of a part"

# There is room for the bytes, and none for a record of them.
room 64m
launch leecher "$BLOCKFERRY" leech "@$work/ticket" --store "file:$work/disk/b.img" --name leecher --host-name b --finalize manual
has_pulled() { [ "$("$BLOCKFERRY" migrate status leecher --json 2>/dev/null | jq .rounds)" -ge 1 ] 2>/dev/null; }
wait_until 60 "a round" has_pulled
dd if=/dev/zero of="$work/disk/full" bs=4k >/dev/null 2>&1 || true
"$BLOCKFERRY" finalize leecher
ends_with 1 leecher
contains "$(cat "$work/leecher.log")" "b.img.blockferry: No space left" "a leecher that cannot write its record"
goes_on writer
rm "$work/disk/full"
launch leecher "$BLOCKFERRY" leech "@$work/ticket" --store "file:$work/disk/b.img" --name leecher --host-name b
next_line leecher
there=$line
ends_with 1 writer
ends_with 0 seeder
cmp "$work/a.img" "$there" || fail "the volume is not what it was"
detach leecher
umount "$work/disk"
nothing_left
