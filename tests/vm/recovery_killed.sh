#!/bin/bash
# Risk: a process that dies while it takes a device over leaves it so that nobody can, or loses what was under way.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"
need_ublk
ROUNDS=80

truncate -s 64M "$work/disk.img"
attach disk "file:$work/disk.img"
load "$device" 40
crash_under_load disk "$device"
begun=${EPOCHREALTIME/./}
recover disk
us=$((${EPOCHREALTIME/./} - begun)) # from the start of a recovery to the moment at which it is killed
step_us=$((us / 4))

log=$work/disk.log
said() { grep -c "$1" "$log" || true; }

crash_under_load disk "$device"
in_the_middle=0
for _ in $(seq $ROUNDS); do
  begun=$(said "taking the ublk device over") done=$(said "is taken over")
  launch disk "$BLOCKFERRY" -vv recover disk
  read -r -t "$(printf '%d.%06d' $((us / 1000000)) $((us % 1000000)))" -u "${output_of[disk]}" line || true
  crash disk
  ! gone "${pid_of[fio]}" || fail "fio ended when a recovery was killed after $us us: $(tail -n 15 "$work/load.fio")"
  # Towards the middle: later where it had not begun, earlier where it was done.
  if [ "$(said "is taken over")" -gt "$done" ]; then
    us=$((us > step_us ? us - step_us : us))
  elif [ "$(said "taking the ublk device over")" -eq "$begun" ]; then
    us=$((us + step_us))
  else
    in_the_middle=$((in_the_middle + 1))
  fi
  step_us=$((step_us > 400 ? step_us * 3 / 4 : 300))
done
echo "of $ROUNDS recoveries $((ROUNDS - $(said "taking the ublk device over"))) were killed before they began," \
  "$in_the_middle in the middle ($(($(said "the queues serve") - $(said "is taken over"))) while their queues served already)," \
  "$(said "is taken over") when they were done"
[ "$in_the_middle" -gt 0 ] || fail "no recovery was killed in the middle"
recover disk
load_is_whole
detach disk
nothing_left
