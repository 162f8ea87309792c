#!/bin/bash
# Risk: a mount of a remote volume that is killed costs the application an error, a block or its lease, though another process
# goes on with it; or one goes on whose volume somebody else has written meanwhile.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"
need_ublk

truncate -s 64M "$work/disk.img"
serve server "disk=file:$work/disk.img" --ticket-file "$work/disk.ticket"
secret=${ticket##*.}
attach disk "@$work/disk.ticket" --io-timeout 120
load "$device" 40
for round in 1 2 3 4 5; do
  crash_under_load disk "$device"
  case $round in
  1 | 4) attach disk "@$work/disk.ticket" --io-timeout 120 ;;
  2 | 5) recover disk ;;
  3)
    # Both ends die, and the ticket is given by hand.
    crash server
    address=$(address_of "$ticket") serve server "disk=file:$work/disk.img"
    recover disk "$ticket"
    ;;
  esac
done
load_is_whole
! grep -rqF "$secret" "$work/run" || fail "the secret is in $(grep -rlF "$secret" "$work/run")"

# A ticket that was in no file is not kept.
detach disk
BLOCKFERRY_TICKET=$ticket start disk "$BLOCKFERRY" mount --direct --name disk
device=$line
load "$device" 8
crash_under_load disk "$device"
refused "$BLOCKFERRY" recover disk
contains "$message" "the ticket of \`disk\` was in no file" "recover without the ticket"
! grep -rqF "$secret" "$work/run" || fail "the secret is in $(grep -rlF "$secret" "$work/run")"
BLOCKFERRY_TICKET=$ticket recover disk
load_is_whole

# The dead one holds its lease, and whoever takes it ends the recovery.
load "$device" 8
crash_under_load disk "$device"
refused "$BLOCKFERRY" mount "$ticket" --direct --name disk --read-only
contains "$message" "its read-only is no, not yes" "a mount with other options"
launch thief env BLOCKFERRY_RUN_DIR="$work/elsewhere" "$BLOCKFERRY" mount "$ticket" --direct --name thief --takeover
next_line thief
verify_io "$line" 8
refused "$BLOCKFERRY" recover disk "$ticket"
contains "$message" "cannot go on with \`disk\`, which stays as it is" "recover of a fenced writer"
contains "$message" "taken the volume over" "recover of a fenced writer"
same "$(state_of disk)" "dead true" "state after a recovery that was refused"
"$BLOCKFERRY" stop disk --force || fail "stop --force left a dead device"
ends_with 1 fio
detach thief
detach server
nothing_left
