#!/bin/bash
# Risk: a block is lost or mixed up between application, local store and origin, while the pull fills the store from below.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

# check SIZE MIB OPTION...: a volume of that many bytes, and how much of it is written.
check() {
  local size=$1 mib=$2 written
  shift 2
  head -c "$size" /dev/urandom >"$work/disk.img"
  serve server "disk=file:$work/disk.img"
  manage client "$ticket" "$@"
  same "$(head -c "$size" "$device" | sha256sum | cut -d' ' -f1)" "$(checksum "$work/disk.img")" "what is read at first ($*)"
  verify_io "$device" "$mib"
  written=$(head -c "$size" "$device" | sha256sum | cut -d' ' -f1)
  wait_until 120 "the pull of everything" is_local client
  wait_until 120 "the push of everything" is_clean client
  same "$(head -c "$size" "$device" | sha256sum | cut -d' ' -f1)" "$written" "what is read in the end ($*)"
  same "$(checksum "$work/disk.img")" "$written" "content of the origin ($*)"
  same "$(managed client origin_failures) $(managed client store_failures)" "0 0" "failures ($*)"
  detach client
  detach server
}

check $((64 << 20)) 48
check $(((48 << 20) + 1000)) 32 --chunk-size 64KiB --pull-workers 2 --push-interval 0.05
check $((48 << 20)) 32 --store mem --chunk-size 4MiB --durability local
nothing_left
