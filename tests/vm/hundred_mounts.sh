#!/bin/bash
# Risk: each mount leaves something behind: a device, a thread or a file descriptor of the server, a file in its state.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

WARM_UP=10
# The server's pool keeps a few threads for a while, now more, now fewer; a leak would be one a mount.
POOL_THREADS=8

truncate -s 16M "$work/disk.img" "$work/local.img"
serve server "disk=file:$work/disk.img"
server=${pid_of[server]}

is_back() { [ "$(threads_of "$server")" -le $((threads + POOL_THREADS)) ] && [ "$(descriptors_of "$server")" -le "$descriptors" ]; }

for turn in $(seq 100); do
  case $((turn % 3)) in
  0) resource=mem:16MiB ;;
  1) resource=$ticket ;;
  2) resource=file:$work/local.img ;;
  esac
  attach turn "$resource"
  dd if="$device" of=/dev/null bs=64k count=4 iflag=direct status=none
  dd if=/dev/zero of="$device" bs=64k count=4 oflag=direct status=none
  detach turn
  if [ "$turn" -eq "$WARM_UP" ]; then
    threads=$(threads_of "$server") descriptors=$(descriptors_of "$server")
    files=$(find "$BLOCKFERRY_RUN_DIR" | wc -l)
  fi
done
wait_until 60 "the server's threads and descriptors ($threads, $descriptors) as before, now $(threads_of "$server"), $(descriptors_of "$server")" is_back
same "$(find "$BLOCKFERRY_RUN_DIR" | wc -l)" "$files" "files in the run-time directory"
no_devices || fail "devices left: $(block_devices)"
detach server
nothing_left
