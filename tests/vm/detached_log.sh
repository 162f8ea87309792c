#!/bin/bash
# Risk: a mount in the background fills the run-time directory, which is memory, with what it says.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

LOG_BYTES_MAX=$((1 << 20))
ROUNDS_MAX=50

read_all() { dd if="$device" of=/dev/null bs=64k iflag=direct status=none; }

serve server mem:32MiB
device=$(RUST_LOG=trace "$BLOCKFERRY" mount "$ticket" --direct --name talker --detach 2>/dev/null)
log=$BLOCKFERRY_RUN_DIR/talker/log
for _ in $(seq "$ROUNDS_MAX"); do
  read_all
  [ ! -e "$log.old" ] || break
done
[ -e "$log.old" ] || fail "the log never filled: $(ls -l "$(dirname "$log")")"
read_all
for file in "$log" "$log.old"; do
  [ "$(stat -c %s "$file")" -le "$LOG_BYTES_MAX" ] || fail "$file is too large: $(stat -c %s "$file")"
done
contains "$(tail -n 5 "$log")" TRACE "the end of the log"
"$BLOCKFERRY" stop talker
[ ! -e "$BLOCKFERRY_RUN_DIR/talker" ] || fail "left: $(ls -R "$BLOCKFERRY_RUN_DIR/talker")"
detach server
nothing_left
