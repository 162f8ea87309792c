#!/bin/bash
# Risk: doctor says something else of this machine than the devices do.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

report=$("$BLOCKFERRY" doctor)
contains "$report" "$(uname -r)" "doctor's kernel"
for part in ublk nbd fuse loop userfaultfd io_uring "locked memory"; do
  contains "$report" "$part" "doctor's report"
done

attach chosen mem:16MiB
if has_ublk; then wanted=ublk; else wanted=fuse; fi
same "$("$BLOCKFERRY" doctor --json | jq -r .device)" "$wanted" "the device that doctor expects of auto"
case $device in
*ublk*) same ublk "$wanted" "the device that auto took" ;;
*) same fuse "$wanted" "the device that auto took" ;;
esac
detach chosen
nothing_left
