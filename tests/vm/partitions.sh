#!/bin/bash
# Risk: partition tools do not work on the device, or its partitions are not found when it is attached again.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

need_ublk
truncate -s 64M "$work/disk.img"
attach first "file:$work/disk.img"
printf 'label: gpt\nsize=16MiB\nsize=32MiB\n' | sfdisk -q "$device"
sfdisk --verify -q "$device" || fail "sfdisk finds its table damaged"
wait_until 30 "the first partition" test -b "${device}p1"
mkfs.ext4 -q "${device}p2"
mount_at "${device}p2" "$work/mnt"
echo world >"$work/mnt/hello"
umount "$work/mnt"
detach first

attach again "file:$work/disk.img"
wait_until 30 "the second partition" test -b "${device}p2"
mount_at "${device}p2" "$work/mnt" -o ro
same "$(cat "$work/mnt/hello")" world "the file in the second partition"
umount "$work/mnt"
detach again
nothing_left
