#!/bin/bash
# Risk: on a kernel without ublk, `--device auto` fails where FUSE and a loop device would do, or does not say what it took.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

attach auto mem:32MiB
if has_ublk; then
  contains "$device" /dev/ublkb "the device that auto took"
else
  contains "$device" /dev/loop "the device that auto took"
  contains "$(cat "$work/auto.log")" ublk "what auto says of the devices it did not take"
  refused "$BLOCKFERRY" mount mem:16MiB --direct --device ublk --name forced
  contains "$message" ublk "why there is no ublk device"
fi
same "$(blockdev --getsize64 "$device")" $((32 << 20)) "size of the device"
same "$(blockdev --getss "$device")" 512 "logical block of the device"
verify_io "$device" 8
detach auto

attach fuse mem:32MiB --device fuse
contains "$device" /dev/loop "the device over FUSE"
verify_io "$device" 8
detach fuse
nothing_left
