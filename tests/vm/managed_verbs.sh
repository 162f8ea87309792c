#!/bin/bash
# Risk: what is said of a local store is wrong, or it is lost, or kept, against what was asked for; a hook is not run, or one
# that fails stops nothing; what was recorded of the first reads does not come first the next time.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

read_chunk() { dd if="$device" of=/dev/null bs=256k count=1 skip="$1" iflag=direct status=none; }

write_chunk() { head -c 256k /dev/urandom | dd of="$device" bs=256k count=1 seek="$1" iflag=fullblock oflag=direct conv=notrunc status=none; }

has_lines() { [ -e "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ]; }

shown() { "$BLOCKFERRY" cache show "$work/store" --json | jq -r ".$1"; }

head -c 32M /dev/urandom >"$work/disk.img"
serve server "disk=file:$work/disk.img" --ticket-file "$work/disk.ticket"

# The order of first touches, recorded and replayed.
manage disk "@$work/disk.ticket" --pull-order none --record-heat "$work/heat"
# The first chunk, which may have been looked at for partitions, first.
for chunk in 0 100 7 8 55; do read_chunk "$chunk"; done
[ "$(managed disk missed_reads)" -ge 5 ] || fail "$(managed disk missed_reads) misses of 5 absent chunks"
detach disk
same "$(grep -v '^#' "$work/heat" | head -n 4 | tr '\n' ';')" "0 262144;26214400 262144;1835008 524288;14417920 262144;" "the recorded order"
manage disk "@$work/disk.ticket" --pull-order "$work/heat" --pull-rate 1MiB --on-chunk-local "cat >$work/local"
wait_until 60 "the first chunks" has_lines "$work/local" 5
same "$(head -n 5 "$work/local" | sort -n | tr '\n' ';')" "0 262144;1835008 262144;2097152 262144;14417920 262144;26214400 262144;" "what was pulled first"
detach disk

# Hooks, and a sync that one of them forbids.
manage disk "@$work/disk.ticket" --cache "$work/store" --pull-order none --push off --on-before-sync "test ! -e $work/forbidden" \
  --on-after-sync "echo \$BLOCKFERRY_PUSHED_BYTES >$work/pushed" --on-before-close "touch $work/closed"
read_chunk 0
write_chunk 3
touch "$work/forbidden"
refused "$BLOCKFERRY" sync disk
contains "$message" "before-sync hook failed" "a sync that a hook forbids"
same "$(managed disk dirty_bytes)" 262144 "dirty bytes after a sync that was forbidden"
rm "$work/forbidden"
"$BLOCKFERRY" sync disk
same "$(cat "$work/pushed")" 262144 "bytes that the hook was told of"
cmp <(dd if="$device" bs=256k skip=3 count=1 iflag=direct status=none) <(dd if="$work/disk.img" bs=256k skip=3 count=1 status=none)

# What is not pushed stays in the store, and is shown.
write_chunk 4
same "$(shown in_use)" true "whether the store is in use"
refused "$BLOCKFERRY" cache drop "$work/store" --discard-dirty
contains "$message" "in use" "dropping a store that is in use"
detach disk
[ -e "$work/closed" ] || fail "the hook before the end was not run"
same "$(shown in_use) $(shown local_bytes) $(shown dirty_bytes)" "false 786432 262144" "the store after the end"
refused "$BLOCKFERRY" cache drop "$work/store"
contains "$message" "--discard-dirty" "dropping local writes"
refused env BLOCKFERRY_RUN_DIR="$work/elsewhere" "$BLOCKFERRY" mount "@$work/disk.ticket" --cache "$work/other"
contains "$message" "managed mount" "a second writer while local writes are kept"

# The same command goes on there; nothing that is there is fetched again.
manage disk "@$work/disk.ticket" --cache "$work/store" --pull-order none
wait_until 60 "the push" is_clean disk
read_chunk 3
read_chunk 4
same "$(managed disk fetched_bytes)" 0 "bytes fetched again"
crash disk
"$BLOCKFERRY" stop disk --force
manage again "@$work/disk.ticket" --cache "$work/store" --pull-order none
read_chunk 4
same "$(managed again fetched_bytes)" 0 "bytes fetched again after a crash"
detach again
"$BLOCKFERRY" cache drop "$work/store"
same "$(ls -A "$work/store")" "" "what dropping a store leaves"
refused "$BLOCKFERRY" cache show "$work/store"
contains "$message" "no cache" "showing what is not there"
detach server
nothing_left
