#!/bin/bash
# Risk: kill -9 of a managed mount costs the application an error, an acknowledged write, or its device; or what was pulled is
# fetched once more.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"
need_ublk

KILLS=${KILLS:-25}
MIB=64

# busy_or_gone DEVICE: whether the load has done some more by now, however little, or has ended.
busy_or_gone() {
  local now
  now=$(awk '{ print $1 + $5 }' "/sys/block/$(basename "$1")/stat")
  gone "${pid_of[fio]}" || [ "$now" -gt $((seen + RANDOM % 600)) ] && seen=$now
}
seen=0

# check OPTION...: kills again and again under a load that verifies itself.
check() {
  local round fetched=0 more
  head -c "${MIB}M" /dev/urandom >"$work/disk.img"
  serve server "disk=file:$work/disk.img" --ticket-file "$work/disk.ticket"
  manage disk "@$work/disk.ticket" --io-timeout 120 --pull-rate 4MiB "$@"
  load "$device" 24
  for ((round = 1; round <= KILLS; round++)); do
    wait_until 60 "requests under way" busy_or_gone "$device"
    if gone "${pid_of[fio]}"; then
      load_is_whole
      load "$device" 24
    fi
    more=$(managed disk fetched_bytes)
    fetched=$((fetched + more))
    crash disk
    if ((round % 2)); then
      XDG_CACHE_HOME=$work/cache recover disk
    else
      manage disk "@$work/disk.ticket" --io-timeout 120 --pull-rate 4MiB "$@"
    fi
  done
  load_is_whole
  wait_until 120 "the pull of everything" is_local disk
  # What was on its way when it was killed may have to come once more; the status is a moment older than the kill.
  fetched=$((fetched + $(managed disk fetched_bytes)))
  [ "$fetched" -le $(((MIB + KILLS * 4) << 20)) ] || fail "$fetched bytes were fetched of a volume of $MIB MiB, in $KILLS lives"
  wait_until 120 "the push of everything" is_clean disk
  same "$(checksum "$work/disk.img")" "$(checksum "$device")" "content of the origin after $KILLS kills ($*)"
  detach disk
  detach server
}

check --cache "$work/store"
rm -r "$work/store"
check --push-interval 0.05
nothing_left
