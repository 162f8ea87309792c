#!/bin/bash
# Risk: a volume that is large and nearly empty costs time or memory by its size: to open it, to discard all of it, to make a
# file system on it, or to bring that to the origin.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

KIB_MAX=$((32 << 10))
OPEN_MS_MAX=1000
# What is on its way to the origin is bounded apart from it, and not by the size.
MEMORY_LIMIT_KIB=$((16 << 10))
DISCARD_S_MAX=90
PUSH_S_MAX=90
disks=$work/disks

rss_kib() { awk -v of="$2:" '$1 == of { print $2 }' "/proc/${pid_of[$1]}/status"; }

# live_maps_kib: what the live maps of the mounts occupy.
live_maps_kib() { stat -c '%b %B' "$BLOCKFERRY_RUN_DIR"/.stores/* | awk '{ sum += $1 * $2 } END { print int(sum / 1024) }'; }

# open_timed NAME SIZE: serves and mounts a sparse volume of that size; sets open_ms.
open_timed() {
  local from
  truncate -s "$2" "$disks/$1.img"
  serve "$1-server" "disk=file:$disks/$1.img"
  from=$(date +%s%3N)
  manage "$1" "$ticket" --pull-order none --cache "$disks/$1.store" --push-interval 0.2 --memory-limit "${MEMORY_LIMIT_KIB}K"
  open_ms=$(($(date +%s%3N) - from))
  same "$(blockdev --getsize64 "$device")" "$(stat -c %s "$disks/$1.img")" "the size of $1"
}

# is_small WHAT MORE_KIB: the large mount takes little more than the small one, and MORE_KIB; its live map, little.
is_small() {
  local rss map
  rss=$(($(rss_kib large VmHWM) - $(rss_kib small VmRSS)))
  map=$(live_maps_kib)
  echo "$1: at most $rss KiB resident more than a small volume, live maps of $map KiB"
  [ "$map" -lt "$KIB_MAX" ] || fail "$1: live maps of $map KiB"
  # The pages of the map are resident as well.
  [ "$rss" -lt $((KIB_MAX + $2)) ] || fail "$1: $rss KiB resident more than a small volume"
}

# timed SECONDS COMMAND...: runs it, in that time.
timed() {
  local limit_s=$1 from=$SECONDS
  shift
  timeout "$limit_s" "$@" || fail "$* did not end well within $limit_s s"
  echo "$*: $((SECONDS - from)) s"
}

mount_at tmpfs "$disks" -t tmpfs -o size=1g
open_timed small 64M
small_ms=$open_ms
open_timed large 16T
echo "opened 64 MiB in $small_ms ms, 16 TiB in $open_ms ms"
[ $((open_ms - small_ms)) -lt "$OPEN_MS_MAX" ] || fail "16 TiB took $open_ms ms to open, 64 MiB $small_ms ms"
is_small opened 0

# The kernel cuts it in pieces of nearly 4 GiB, and those again: nearly none begins where a region does.
timed "$DISCARD_S_MAX" blkdiscard "$device"
is_small discarded "$MEMORY_LIMIT_KIB"
timed "$PUSH_S_MAX" "$BLOCKFERRY" sync large
is_clean large || fail "$(managed large dirty_bytes) bytes are dirty after a sync"
is_small pushed "$MEMORY_LIMIT_KIB"
[ "$(allocated_kib "$disks/large.img")" -lt 1024 ] || fail "a discard takes $(allocated_kib "$disks/large.img") KiB at the origin"

timed "$DISCARD_S_MAX" mkfs.xfs -q -l size=64m "$device"
is_small "made an XFS" "$MEMORY_LIMIT_KIB"
mount_at "$device" "$work/mnt"
head -c 16M /dev/urandom >"$work/mnt/random"
sum=$(sha256sum <"$work/mnt/random")
umount "$work/mnt"
detach large
detach large-server

mount_at "$disks/large.img" "$work/mnt" -o loop
same "$(sha256sum <"$work/mnt/random")" "$sum" "the file at the origin"
umount "$work/mnt"
detach small
detach small-server
nothing_left
