#!/bin/bash
# Risk: a size that is no multiple of a sector loses its last bytes, shows garbage behind them, or makes the file grow.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

LEN=1000003
PADDED=1000448
LAST_SECTOR=$((PADDED / 512 - 1))
TAIL=$((LEN - LAST_SECTOR * 512))

# write_last FILE: writes a sector over the last one of the device.
write_last() { dd if="$1" of="$device" bs=512 seek="$LAST_SECTOR" count=1 oflag=direct status=none 2>/dev/null; }

check() {
  same "$(blockdev --getsize64 "$device")" "$PADDED" "$1: size of the device"
  cmp -n "$LEN" "$work/odd.img" "$device" || fail "$1: the device does not show the file"
  only_zeros "$device" "$LEN" $((PADDED - LEN)) || fail "$1: the padding is not zero"
  head -c "$TAIL" /dev/urandom >"$work/sector"
  truncate -s 512 "$work/sector"
  write_last "$work/sector" || fail "$1: zeros in the padding were refused"
  tr '\0' x </dev/zero | head -c 512 >"$work/full" || true
  ! write_last "$work/full" || fail "$1: the padding could be written"
}

# The device's bytes must be in the file, and no more of them.
check_file() {
  same "$(stat -c %s "$work/odd.img")" "$LEN" "$1: size of the file"
  cmp -n "$TAIL" <(tail -c "$TAIL" "$work/odd.img") "$work/sector" || fail "$1: the last bytes are not in the file"
}

head -c "$LEN" /dev/urandom >"$work/odd.img"
attach direct "file:$work/odd.img"
check direct
detach direct
check_file direct

serve server "odd=file:$work/odd.img"
attach remote "$ticket"
check remote
detach remote
detach server
check_file remote
nothing_left
