#!/bin/bash
# Risk: data is lost or mixed up between the tags of a device on memory.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

attach memory mem:64MiB
same "$(blockdev --getsize64 "$device")" $((64 << 20)) "size of the device"
only_zeros "$device" 0 $((64 << 20)) || fail "new memory is not all zeros"
verify_io "$device" 32
blkdiscard --offset $((8 << 20)) --length $((16 << 20)) "$device"
only_zeros "$device" $((8 << 20)) $((16 << 20)) || fail "discarded blocks do not read as zeros"
blkdiscard --zeroout --offset 0 --length $((4 << 20)) "$device"
only_zeros "$device" 0 $((4 << 20)) || fail "zeroed blocks do not read as zeros"
detach memory
nothing_left
