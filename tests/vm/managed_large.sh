#!/bin/bash
# Risk: to open a volume that is large and nearly empty costs time or memory by its size.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

RSS_KIB_MAX=$((32 << 10))
OPEN_MS_MAX=1000
disks=$work/disks

rss_kib() { awk '$1 == "VmRSS:" { print $2 }' "/proc/${pid_of[$1]}/status"; }

# live_maps_kib: what the live maps of the mounts occupy.
live_maps_kib() { stat -c '%b %B' "$BLOCKFERRY_RUN_DIR"/.stores/* | awk '{ sum += $1 * $2 } END { print int(sum / 1024) }'; }

# open_timed NAME SIZE: serves and mounts a sparse volume of that size; sets open_ms.
open_timed() {
  local from
  truncate -s "$2" "$disks/$1.img"
  serve "$1-server" "disk=file:$disks/$1.img"
  from=$(date +%s%3N)
  manage "$1" "$ticket" --pull-order none --cache "$disks/$1.store" --push-interval 0.2
  open_ms=$(($(date +%s%3N) - from))
  same "$(blockdev --getsize64 "$device")" "$(stat -c %s "$disks/$1.img")" "the size of $1"
}

# is_small WHAT: the large mount, with its live map, takes little more than the small one.
is_small() {
  local more_kib=$(($(rss_kib large) - $(rss_kib small))) map_kib
  map_kib=$(live_maps_kib)
  echo "$1: $more_kib KiB resident more than a small volume, live maps of $map_kib KiB"
  [ $((more_kib + map_kib)) -lt "$RSS_KIB_MAX" ] || fail "$1: $more_kib KiB more than a small volume, and $map_kib KiB of live maps"
}

mount_at tmpfs "$disks" -t tmpfs -o size=1g
open_timed small 64M
small_ms=$open_ms
open_timed large 16T
echo "opened 64 MiB in $small_ms ms, 16 TiB in $open_ms ms"
[ $((open_ms - small_ms)) -lt "$OPEN_MS_MAX" ] || fail "16 TiB took $open_ms ms to open, 64 MiB $small_ms ms"
is_small opened

detach large
detach large-server
detach small
detach small-server
nothing_left
