#!/bin/bash
# Risk: an application at the seeder sees an error, or loses a write, because leechers come, finalize, and are killed at any point.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

truncate -s 128M "$work/a.img"
start seeder "$BLOCKFERRY" seed "file:$work/a.img" --name seeder --listen 127.0.0.1:0 --state-dir "$work/state" \
  --ticket-file "$work/ticket" --hold-limit 2 -v --on-after-sync "test ! -e $work/keep || exit 1"
device=$line
next_line seeder
touch "$work/keep"
load "$device" 96

# has_come COUNT: whether so many sessions have begun; that of one who is killed very early may not.
has_come() { [ "$(grep -c 'in volume=seeder' "$work/seeder.log")" -ge "$1" ]; }

# None of them can finalize: a hook fails then. So each may be killed anywhere, and the next one comes by the same name and store.
for round in $(seq 12); do
  launch leecher "$BLOCKFERRY" leech "@$work/ticket" --store "file:$work/b.img" --name leecher --host-name b --downtime-target 1000
  [ "$round" -gt 6 ] || wait_until 60 "the leecher of round $round" has_come "$round"
  sleep "0.$((round * 37 % 90 + 10))"
  crash leecher
  ! gone "${pid_of[fio]}" || break
done
load_is_whole

rm "$work/keep"
start leecher "$BLOCKFERRY" leech "@$work/ticket" --store "file:$work/b.img" --name leecher --host-name b
ends_with 0 seeder
same "$(checksum "$work/b.img")" "$(checksum "$work/a.img")" "what has moved"
detach leecher
nothing_left
