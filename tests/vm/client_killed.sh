#!/bin/bash
# Risk: a client that dies under load leaves I/O hanging that nobody goes on with, a lease that nobody frees, or a device that needs
# a reboot.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

LEASE_LIMIT_S=120

lease_is_free() {
  launch heir "$BLOCKFERRY" mount "$ticket" --direct --name heir
  if read -r -t "$START_LIMIT_S" -u "${output_of[heir]}" device; then return; fi
  reap heir || true
  return 1
}

truncate -s 64M "$work/disk.img"
serve server "disk=file:$work/disk.img"
attach client "$ticket" --no-recovery
launch fio fio --name=load --filename="$device" --direct=1 --ioengine=io_uring --clocksource=cpu --output="$work/load.fio" \
  --rw=randwrite --bs=4k --iodepth=16 --size=48m --time_based --runtime=100
wait_until 60 "writes under way" wrote_more "$device" 2000
crash client
wait_until 60 "the end of fio, whose device is gone" gone "${pid_of[fio]}"
! reap fio || fail "fio saw no error, though its device died"

contains "$("$BLOCKFERRY" list)" dead "the list, after the client's death"
contains "$("$BLOCKFERRY" list)" client "the list, after the client's death"
same "$(state_of client)" "dead false" "state and whether the client can be recovered"
refused "$BLOCKFERRY" recover client
contains "$message" "--no-recovery" "recover of a client that was not to be recovered"
"$BLOCKFERRY" stop client || fail "stop did not clean up what the dead client left"
no_devices || fail "left after stop: $(block_devices)"
same "$("$BLOCKFERRY" list --json | jq -c '[.[] | select(.name == "client")]')" "[]" "the list, after stop"

wait_until "$LEASE_LIMIT_S" "the lease of the dead client" lease_is_free
verify_io "$device" 8
detach heir
detach server
nothing_left
