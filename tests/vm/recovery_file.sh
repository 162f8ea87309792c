#!/bin/bash
# Risk: a mount of a file that is killed costs the application an error or a block, though another process goes on with it.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"
need_ublk

# five_kills NAME SIZE: kills and recovers the mount of a file under load, in both ways in turn.
five_kills() {
  local name=$1 size=$2 round first written
  truncate -s "$size" "$work/$name.img"
  attach "$name" "file:$work/$name.img"
  first=$device
  load "$device" 40
  for round in 1 2 3 4 5; do
    crash_under_load "$name" "$device"
    if [ $((round % 2)) -eq 1 ]; then
      attach "$name" "file:$work/$name.img"
      same "$device" "$first" "the device after round $round"
    else
      recover "$name"
    fi
    same "$(state_of "$name")" "alive false" "state of $name after round $round"
  done
  load_is_whole
  written=$(head -c "$size" "$device" | sha256sum)
  detach "$name"
  same "$(sha256sum <"$work/$name.img")" "$written" "content of $name.img"
}

five_kills zerocopy 67108864
# A file that is not all blocks is served by copies.
five_kills copied 67108000
nothing_left
