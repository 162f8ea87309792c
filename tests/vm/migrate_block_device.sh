#!/bin/bash
# Risk: a block device, which has no place for the record of a move, is migrated all the same, or is written before that is refused.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

WHY="is a block device, which has no place for the record of a move"

head -c 8M /dev/urandom >"$work/below.img"
before=$(checksum "$work/below.img")
loop=$(losetup --find --show "$work/below.img")
restore() { losetup --detach "$loop" 2>/dev/null || true; }

refused "$BLOCKFERRY" seed "file:$loop" --listen 127.0.0.1:0 --state-dir "$work/state"
contains "$message" "$loop $WHY" "seed of a block device"

truncate -s 8M "$work/a.img"
start seeder "$BLOCKFERRY" seed "file:$work/a.img" --name seeder --listen 127.0.0.1:0 --state-dir "$work/state" \
  --ticket-file "$work/ticket"
next_line seeder
refused "$BLOCKFERRY" leech "@$work/ticket" --store "file:$loop"
contains "$message" "$loop $WHY" "leech into a block device"
same "$("$BLOCKFERRY" list | wc -l)" 2 "what is left beside the seeder"
detach seeder
losetup --detach "$loop"
same "$(checksum "$work/below.img")" "$before" "the bytes below"
nothing_left
