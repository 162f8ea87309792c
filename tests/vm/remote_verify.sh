#!/bin/bash
# Risk: data is lost or mixed up on its way to another host, on memory or on a file.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

truncate -s 64M "$work/disk.img"
serve server "disk=file:$work/disk.img"
attach file "$ticket"
verify_io "$device" 16
written=$(checksum "$device")
detach file
detach server
same "$(checksum "$work/disk.img")" "$written" "content of the served file"

serve server memory=mem:64MiB
attach memory "$ticket"
verify_io "$device" 16
detach memory
detach server
nothing_left
