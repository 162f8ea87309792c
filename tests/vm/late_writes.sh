#!/bin/bash
# Risk: a write that a dead process had begun lands after a newer one of the process that goes on. The file's lock is what keeps
# them apart: it must not be free before the last operation of the dead one is over.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"
need_ublk
DELAY_MS=3000
table=blockferry-slow
dmsetup targets 2>/dev/null | grep -q '^delay ' || skip "this kernel has no dm-delay"

# delay SECTORS MS: a table in which every write takes so long.
delay() { echo "0 $1 delay $lower 0 0 $lower 0 $2"; }

# make_slow SECTORS: the device, not slow yet.
make_slow() {
  truncate -s 64M "$work/lower.img"
  lower=$(losetup --find --show "$work/lower.img")
  dmsetup create --noudevsync $table --table "$(delay "$1" 0)"
  slow=/dev/$(dmsetup info --columns --noheadings -o blkdevname $table)
}

# set_delay SECTORS MS
set_delay() {
  dmsetup reload $table --table "$(delay "$1" "$2")"
  dmsetup resume --noudevsync --noflush $table
}

remove_slow() {
  dmsetup remove --noudevsync $table && losetup -d "$lower"
}

# What dm-delay holds back shows nowhere, so this asks the mount.
has_begun() { [ "$("$BLOCKFERRY" status disk --json | jq .status.writes)" -ge 1 ]; }

is_over() { [ "$(sectors_written "$slow")" -ge 8 ]; }

is_locked() { ! flock --nonblock --exclusive "$slow" true; }

# block CHARACTER: 4 KiB of it.
block() { head -c 4096 /dev/zero | tr '\0' "$1"; }

# write_block CHARACTER: puts it at the start of the device, durably.
write_block() { block "$1" | dd of="$device" bs=4k oflag=direct,dsync conv=notrunc status=none; }

# late_write SECTORS OPTION...: kills a mount with a write on its way, and goes on with it.
late_write() {
  local sectors=$1 begun took_ms
  shift
  make_slow "$sectors"
  attach disk "file:$slow" "$@"
  set_delay "$sectors" "$DELAY_MS"
  launch writer write_block A
  wait_until 30 "a write that takes its time" has_begun
  begun=${EPOCHREALTIME/./}
  crash disk
  launch disk "$BLOCKFERRY" recover disk
  until is_over; do
    # In this order: what is not over afterwards was not before, either.
    if ! is_locked && ! is_over; then fail "the lock became free before the write of the dead process was over"; fi
    sleep 0.02
  done
  set_delay "$sectors" 0
  next_line disk
  took_ms=$(((${EPOCHREALTIME/./} - begun) / 1000))
  # The write may have been under way for a moment before it was noticed.
  [ "$took_ms" -gt $((DELAY_MS / 2)) ] || fail "recovered after $took_ms ms, with a write on its way that takes $DELAY_MS ms"
  echo "recovered after $took_ms ms"
  same "$line" "$device" "the device, recovered"
  ends_with 0 writer
  write_block B
  same "$(dd if="$device" bs=4k count=1 iflag=direct status=none | sha256sum)" "$(block B | sha256sum)" "the later write"
  detach disk
  same "$(head -c 4096 "$slow" | sha256sum)" "$(block B | sha256sum)" "the later write, on the disk"
  remove_slow
}

# Direct I/O on the device's own pages.
late_write $((64 << 11))
# Copies, and writes of the page cache that a sync waits for, as the size is not all blocks.
late_write $(((64 << 11) - 1)) --block-size 4096
nothing_left
