#!/bin/bash
# Risk: a server that dies under load costs the application an error or a block, though it comes back.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

truncate -s 64M "$work/disk.img"
serve server "disk=file:$work/disk.img"
first_ticket=$ticket
attach client "$ticket" --io-timeout 120

launch fio fio --name=load --filename="$device" --direct=1 --ioengine=io_uring --clocksource=cpu --output="$work/load.fio" \
  --rw=randwrite --bs=4k --iodepth=16 --size=48m --rate_iops=1500 --verify=crc32c --verify_fatal=1
for round in 1 2; do
  before=$(sectors_written "$device")
  wait_until 60 "writes before kill $round" wrote_more "$device" $((before + 4000))
  crash server
  wait_until 30 "requests that wait" has_in_flight "$device"
  ! gone "${pid_of[fio]}" || fail "fio ended with the server: $(tail -n 15 "$work/load.fio")"
  address=$(address_of "$first_ticket") serve server "disk=file:$work/disk.img"
  same "$ticket" "$first_ticket" "the ticket after a restart"
done
STOP_LIMIT_S=120 ends_with 0 fio
written=$(checksum "$device")
detach client
detach server
same "$(checksum "$work/disk.img")" "$written" "content of the served file"
nothing_left
