#!/bin/bash
# Risk: a process goes on with a device that is not the one of its volume, or a refusal costs the one who waits an error.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"
need_ublk

img=$work/disk.img
truncate -s 64M "$img"
attach disk "file:$img"
load "$device" 24
crash_under_load disk "$device"

# refuses WHAT OPTION...: a mount with these options is refused, by what is wrong, and the device stays.
refuses() {
  local what=$1
  shift
  refused "$BLOCKFERRY" mount "file:$img" --direct "$@"
  contains "$message" "$what" "mount $*"
  same "$(state_of disk)" "dead true" "state after mount $*"
  ! gone "${pid_of[fio]}" || fail "fio ended by mount $*"
}

refuses "its block size is 512 bytes, not 4096" --block-size 4096
refuses "its read-only is no, not yes" --read-only
refuses "its queues is" --queues 17
refuses "its depth is 128, not 32" --depth 32
refuses "waits to be taken over" --no-recovery
refuses "waits to be taken over" --device fuse
refuses "\`blockferry recover disk\`" --name other

truncate -s 128M "$img"
refuses "its size is $((64 << 20)) bytes, not $((128 << 20))"
refused "$BLOCKFERRY" recover disk
contains "$message" "its size is $((64 << 20)) bytes, not $((128 << 20))" "recover with a file that grew"
truncate -s 64M "$img"

mv "$img" "$img.aside"
truncate -s 64M "$img"
refuses "another file than the one that the device is of"
refused "$BLOCKFERRY" recover disk
contains "$message" "another file than the one that the device is of" "recover with another file"
mv "$img.aside" "$img"

# Somebody else has locked the file: it waits, and can be told not to.
launch holder flock --no-fork --exclusive "$img" sleep 600
is_locked() { ! flock --nonblock --shared "$img" true; }
wait_until 30 "the lock of another program" is_locked
launch disk "$BLOCKFERRY" -v recover disk
says_it_waits() { grep -q "waiting for its lock" "$work/disk.log"; }
wait_until 30 "a recovery that waits" says_it_waits
same "$(state_of disk)" "starting false" "state while it is being recovered"
kill -INT "${pid_of[disk]}"
ends_with 1 disk
same "$(state_of disk)" "dead true" "state after a recovery that was interrupted"
crash holder

# Nor does anybody change the file behind the device's back.
refused "$BLOCKFERRY" serve "file:$img" --state-dir "$work/state" --listen 127.0.0.1:0
contains "$message" "\`disk\`, whose process has died, is a device of" "a server of the file"

first=$device
attach living mem:16MiB
refused "$BLOCKFERRY" recover living
contains "$message" "the process of \`living\` lives" "recover of what runs"
crash living
refused "$BLOCKFERRY" recover living
contains "$message" "\`living\` cannot be recovered" "recover of memory"
"$BLOCKFERRY" stop living
refused "$BLOCKFERRY" recover nobody
contains "$message" "no device named \`nobody\`" "recover of what is not there"

device=$first
recover disk
load_is_whole
detach disk
nothing_left
