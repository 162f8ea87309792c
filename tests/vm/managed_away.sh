#!/bin/bash
# Risk: an origin that goes away stops what it need not stop, or costs a write; or a mount that ends meanwhile loses what was not
# pushed.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

read_at() { dd if="$device" of=/dev/null bs=4k count=1 skip="$1" iflag=direct status=none; }

write_at() { head -c 64k /dev/urandom | dd of="$device" bs=64k seek="$1" iflag=fullblock oflag=direct conv=notrunc status=none; }

is_away() { [ "$(managed "$1" away_since)" != null ]; }

come_back() { address=$(address_of "$ticket") serve server "disk=file:$work/disk.img" --ticket-file "$work/disk.ticket"; }

head -c 64M /dev/urandom >"$work/disk.img"
serve server "disk=file:$work/disk.img" --ticket-file "$work/disk.ticket"

# Hits and writes go on, a miss fails at its deadline, and all goes on by itself.
manage client "@$work/disk.ticket" --pull-order none --io-timeout 3 --cache "$work/store"
read_at 0
write_at 0
crash server
wait_until 30 "the status to say that the origin is away" is_away client
read_at 1
write_at 1
write_at 900
! read_at 8000 2>/dev/null || fail "a miss was answered while the origin was away"
same "$(managed client timeouts)" 1 "requests past their deadline"
come_back
wait_until 60 "the connection" eval '! is_away client'
read_at 8000
wait_until 60 "the push of what was written meanwhile" is_clean client

# It ends while the origin is away: with a cache at once, and the next one pushes what is left.
crash server
wait_until 30 "the status to say that the origin is away" is_away client
write_at 5
[ "$(managed client dirty_bytes)" -gt 0 ] || fail "nothing is dirty"
written=$(dd if="$device" bs=64k skip=5 count=1 iflag=direct status=none | sha256sum)
before=$SECONDS
detach client
[ $((SECONDS - before)) -lt 20 ] || fail "with a cache it took $((SECONDS - before)) s to stop"
come_back
manage client "@$work/disk.ticket" --pull-order none --cache "$work/store"
wait_until 60 "the push of what an earlier mount wrote" is_clean client
same "$(dd if="$work/disk.img" bs=64k skip=5 count=1 status=none | sha256sum)" "$written" "what an earlier mount wrote, at the origin"
detach client

# Without one it refuses, though a flush is for the origin here, and gives up what it is told to give up; neither waits for anybody.
manage client "@$work/disk.ticket" --pull-order none --push-interval 3600 --io-timeout 0
crash server
wait_until 30 "the status to say that the origin is away" is_away client
# Not before: a flush by whoever looks at a new device would push it.
write_at 7
before=$SECONDS
refused "$BLOCKFERRY" stop client
contains "$message" "discard-dirty" "a stop that would lose writes"
"$BLOCKFERRY" stop client --discard-dirty
[ $((SECONDS - before)) -lt 20 ] || fail "it took $((SECONDS - before)) s"
ends_with 0 client
nothing_left
