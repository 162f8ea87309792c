#!/bin/bash
# Risk: kill -9 of a managed mount costs the application an error, an acknowledged write, or its device; or what was pulled is
# fetched once more.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"
need_ublk

KILLS=${KILLS:-25}
MIB=64

# check OPTION...: kills again and again under a load that verifies itself.
check() {
  local round fetched=0 more
  head -c "${MIB}M" /dev/urandom >"$work/disk.img"
  serve server "disk=file:$work/disk.img" --ticket-file "$work/disk.ticket"
  manage disk "@$work/disk.ticket" --io-timeout 120 --pull-rate 4MiB "$@"
  load "$device" 48
  for ((round = 1; round <= KILLS; round++)); do
    # At no moment in particular.
    wait_until 60 "writes under way" wrote_more "$device" $(($(sectors_written "$device") + RANDOM % 3000))
    more=$(managed disk fetched_bytes) || more=0
    fetched=$((fetched + more))
    crash disk
    ! gone "${pid_of[fio]}" || break
    if ((round % 2)); then
      XDG_CACHE_HOME=$work/cache recover disk
    else
      manage disk "@$work/disk.ticket" --io-timeout 120 --pull-rate 4MiB "$@"
    fi
  done
  load_is_whole
  [ -n "${pid_of[disk]:-}" ] || manage disk "@$work/disk.ticket" "$@"
  wait_until 120 "the pull of everything" is_local disk
  # What was on its way when it was killed may have to come once more; the status is a moment older than the kill.
  fetched=$((fetched + $(managed disk fetched_bytes)))
  [ "$fetched" -le $(((MIB + KILLS * 4) << 20)) ] || fail "$fetched bytes were fetched of a volume of $MIB MiB, in $KILLS lives"
  wait_until 120 "the push of everything" is_clean disk
  same "$(checksum "$work/disk.img")" "$(checksum "$device")" "content of the origin after $round kills ($*)"
  detach disk
  detach server
}

check --cache "$work/store"
rm -r "$work/store"
check --push-interval 0.05
nothing_left
