#!/bin/bash
# Risk: with several queues, a deep queue or a shallow one, requests are lost or answered twice.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

need_ublk
for shape in "1 1" "1 4096" "2 128"; do
  read -r queues depth <<<"$shape"
  attach shape mem:64MiB --queues "$queues" --depth "$depth"
  fio_job "q$queues-d$depth" "$device" --rw=randrw --bs=4k --iodepth=64 --numjobs=2 --size=16m --offset_increment=32m \
    --verify=crc32c --verify_fatal=1 --verify_backlog=512
  detach shape
done
nothing_left
