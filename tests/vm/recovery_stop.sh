#!/bin/bash
# Risk: a device that nobody goes on with cannot be got rid of, or goes unasked; or what uses it then hangs for ever.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"
need_ublk

truncate -s 64M "$work/disk.img"
attach disk "file:$work/disk.img"
contains "$("$BLOCKFERRY" list)" alive "the list"
crash disk
contains "$("$BLOCKFERRY" list)" "dead, recoverable" "the list, after the death"
contains "$("$BLOCKFERRY" status disk)" "dead, recoverable" "the status, after the death"
contains "$("$BLOCKFERRY" status disk)" "blockferry recover disk" "the status, after the death"
refused "$BLOCKFERRY" stop disk
contains "$message" "waits to be recovered" "stop of a dead device that nobody uses"
contains "$message" "blockferry stop disk --force" "stop of a dead device that nobody uses"
contains "$("$BLOCKFERRY" list)" "dead, recoverable" "the list, after a stop that was refused"
"$BLOCKFERRY" stop disk --force || fail "stop --force left a dead device that nobody used"
no_devices || fail "left after stop: $(block_devices)"

attach disk "file:$work/disk.img"
load "$device" 40
crash_under_load disk "$device"
refused "$BLOCKFERRY" stop disk
contains "$message" "open by" "stop of a dead device in use"
contains "$message" "blockferry recover disk" "stop of a dead device in use"
! gone "${pid_of[fio]}" || fail "fio ended by a stop that was refused"
"$BLOCKFERRY" stop disk --force || fail "stop --force left a dead device"
ends_with 1 fio
no_devices || fail "left after stop --force: $(block_devices)"

# The device of a process that is dying.
attach disk "file:$work/disk.img"
load "$device" 40
wait_until 60 "writes under way" wrote_more "$device" 3000
kill -KILL "${pid_of[disk]}"
reap disk || true
"$BLOCKFERRY" stop disk --force || fail "stop --force failed right after the death"
ends_with 1 fio

# What a process leaves that dies while the driver adds its device: a record without the number, which it had not been told yet.
attach disk "file:$work/disk.img"
crash disk
record=$(sed -E 's/"id":[0-9]+/"id":4294967295/; s/"recovery":\{[^}]*\}/"recovery":null/' "$BLOCKFERRY_RUN_DIR/disk/device.json")
rm "$BLOCKFERRY_RUN_DIR"/disk/*.json
echo "$record" >"$BLOCKFERRY_RUN_DIR/disk/device.json"
"$BLOCKFERRY" list >/dev/null
"$BLOCKFERRY" stop disk || fail "stop left a device whose number nobody knew"
nothing_left
