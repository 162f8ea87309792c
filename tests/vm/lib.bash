# shellcheck shell=bash
# What the tests of this folder share: programs in the background, assertions, and a clean-up that says what was left.
# Sourced first by each test; $BLOCKFERRY is the program under test.
# shellcheck disable=SC2034 # The tests read what is set here.

set -euo pipefail

BLOCKFERRY=$(realpath "${BLOCKFERRY:?names the program under test}")
START_LIMIT_S=60
STOP_LIMIT_S=60
SKIP_STATUS=77

work=$(mktemp -d "${TMPDIR:-/tmp}/blockferry-test.XXXXXX")
export BLOCKFERRY_RUN_DIR=$work/run
declare -A pid_of=() output_of=()
mounts=()

skip() {
  echo "$*"
  exit "$SKIP_STATUS"
}

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

[ "$(id -u)" -eq 0 ] || skip "not root"

has_ublk() { [ -c /dev/ublk-control ]; }

need_ublk() { has_ublk || skip "this kernel ($(uname -r)) has no ublk"; }

# --- programs in the background

# start NAME COMMAND...: starts a program; sets line to the first line of its output, or fails if it ends without one.
start() {
  local name=$1
  shift
  launch "$name" "$@"
  next_line "$name"
}

# launch NAME COMMAND...: starts a program and does not wait. Its errors go to $work/NAME.log.
launch() {
  local name=$1 descriptor
  shift
  rm -f "$work/$name.out"
  mkfifo "$work/$name.out"
  "$@" >"$work/$name.out" 2>>"$work/$name.log" </dev/null &
  pid_of[$name]=$!
  exec {descriptor}<"$work/$name.out"
  output_of[$name]=$descriptor
}

# next_line NAME: sets line to the next line of the program's output.
next_line() {
  line=
  read -r -t "$START_LIMIT_S" -u "${output_of[$1]}" line || fail "$1 printed nothing: $(tail -n 20 "$work/$1.log")"
}

# serve NAME RESOURCE [OPTION...]: starts a server on a port of its own; sets ticket. Its state outlives it.
serve() {
  local name=$1 resource=$2
  shift 2
  start "$name" "$BLOCKFERRY" serve "$resource" --state-dir "$work/$name.state" --listen "${address:-127.0.0.1:0}" "$@"
  ticket=$line
  [[ $ticket == blockferry://* ]] || fail "serve printed '$ticket', no ticket"
}

# attach NAME RESOURCE [OPTION...]: mounts a resource directly; sets device, which can be opened by then.
attach() {
  local name=$1 resource=$2
  shift 2
  start "$name" "$BLOCKFERRY" mount "$resource" --direct --name "$name" "$@"
  device=$line
  [ -b "$device" ] || fail "mount printed '$device', no block device"
}

# manage NAME RESOURCE [OPTION...]: the same with a local store in front of it.
manage() {
  local name=$1 resource=$2
  shift 2
  XDG_CACHE_HOME=$work/cache start "$name" "$BLOCKFERRY" mount "$resource" --name "$name" "$@"
  device=$line
  [ -b "$device" ] || fail "mount printed '$device', no block device"
}

# managed NAME FIELD: a number of the status of a managed mount.
managed() { "$BLOCKFERRY" status "$1" --json | jq -r ".status.managed.$2"; }

# is_clean NAME: whether everything that was written has reached the origin.
is_clean() { [ "$(managed "$1" dirty_bytes)" = 0 ]; }

# is_local NAME: whether everything is in the local store.
is_local() { [ "$(managed "$1" local_bytes)" = "$(managed "$1" size_bytes)" ]; }

# detach NAME: ends a program as a user does, and asserts that it ends well.
detach() {
  kill -INT "${pid_of[$1]}"
  ends_with 0 "$1"
}

# crash NAME: ends a program by SIGKILL.
crash() {
  kill -KILL "${pid_of[$1]}"
  reap "$1" || true
}

# ends_with STATUS NAME: waits for the program's end, within a limit, and asserts its exit status.
ends_with() {
  local wanted=$1 name=$2 status=0
  wait_until "$STOP_LIMIT_S" "the end of $name" gone "${pid_of[$name]}"
  reap "$name" || status=$?
  [ "$status" -eq "$wanted" ] || fail "$name ended with status $status, not $wanted: $(tail -n 20 "$work/$name.log")"
}

reap() {
  local status=0 descriptor=${output_of[$1]}
  wait "${pid_of[$1]}" 2>/dev/null || status=$?
  exec {descriptor}<&-
  unset "pid_of[$1]" "output_of[$1]"
  return "$status"
}

# gone PID: whether a child has ended (it may still wait to be reaped).
gone() {
  local state
  state=$(awk '$1 == "State:" { print $2 }' "/proc/$1/status" 2>/dev/null) || return 0
  [ -z "$state" ] || [ "$state" = Z ]
}

# wait_until SECONDS WHAT COMMAND...: polls until the command succeeds; fails after the time.
wait_until() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || fail "waited in vain for $what"
    sleep 0.05
  done
}

# --- assertions

same() {
  [ "$1" = "$2" ] || fail "$3: '$1', expected '$2'"
}

contains() {
  [[ $1 == *"$2"* ]] || fail "$3: '$2' is not in '$1'"
}

# refused COMMAND...: asserts that it fails (and neither by usage nor by a signal); sets message to what it said.
refused() {
  local status=0
  message=$(timeout 60 "$@" 2>&1 </dev/null) || status=$?
  [ "$status" -eq 1 ] || fail "'$*' ended with status $status, not 1: $message"
}

checksum() { sha256sum "$1" | cut -d' ' -f1; }

# allocated_kib FILE: what the file occupies on its disk.
allocated_kib() {
  sync "$1"
  echo $(($(stat -c '%b * %B' "$1") / 1024))
}

only_zeros() { # FILE OFFSET LENGTH
  cmp -s <(dd if="$1" iflag=skip_bytes,count_bytes skip="$2" count="$3" bs=1M status=none) <(head -c "$3" /dev/zero)
}

# --- load

# fio_job NAME FILE OPTION...: fio with direct I/O through io_uring; fails with its output.
fio_job() {
  local name=$1 file=$2
  shift 2
  fio --name="$name" --filename="$file" --verify_state_save=0 --direct=1 --ioengine=io_uring --clocksource=cpu --group_reporting \
    --output="$work/$name.fio" "$@" >/dev/null 2>&1 || fail "fio $name: $(tail -n 15 "$work/$name.fio")"
}

# verify_io FILE MIB: writes with flushes and trims in between, then checks every block against its checksum.
verify_io() {
  local file=$1 mib=$2
  fio_job mixed "$file" --rw=randrw --bs=4k --iodepth=16 --size="${mib}m" --fsync=64 --verify=crc32c --verify_fatal=1 \
    --verify_backlog=512
  fio_job trimmed "$file" --rw=randtrimwrite --bs=16k --iodepth=8 --size="$((mib / 2))m" --verify=crc32c --verify_fatal=1
  fio_job large "$file" --rw=write --bs=1m --iodepth=4 --size="${mib}m" --verify=crc32c --verify_fatal=1
}

# sectors_written DEVICE; wrote_more DEVICE SECTORS; has_in_flight DEVICE: what the kernel counts.
sectors_written() { awk '{ print $7 }' "/sys/block/$(basename "$1")/stat"; }

wrote_more() { [ "$(sectors_written "$1")" -gt "$2" ]; }

has_in_flight() { awk '{ exit !($1 + $2) }' "/sys/block/$(basename "$1")/inflight"; }

# address_of TICKET: its host and port.
address_of() { sed -E 's#^blockferry://([^/]*)/.*#\1#' <<<"$1"; }

# --- devices that outlive their process

# load FILE MIB: starts writes that go on for a while (about MIB / 6 seconds), and are verified when they are all done.
load() {
  launch fio fio --name=load --filename="$1" --size="$2m" --direct=1 --ioengine=io_uring --clocksource=cpu \
    --output="$work/load.fio" --rw=randwrite --bs=4k --iodepth=16 --rate_iops=1500 --fsync=100 \
    --verify=crc32c --verify_fatal=1 --verify_state_save=0
}

# crash_under_load NAME DEVICE: kills a mount once the load has written some more; what is under way waits then.
crash_under_load() {
  wait_until 60 "writes under way" wrote_more "$2" $(($(sectors_written "$2") + 3000))
  crash "$1"
  same "$(state_of "$1")" "dead true" "state and whether $1 can be recovered"
  ! gone "${pid_of[fio]}" || fail "fio ended with the mount: $(tail -n 15 "$work/load.fio")"
}

# state_of NAME: its state, and whether it can be recovered.
state_of() { "$BLOCKFERRY" list --json | jq -r --arg name "$1" '.[] | select(.name == $name) | "\(.state) \(.recoverable)"'; }

# recover NAME [ARGUMENT...]: goes on with the device of a dead mount; asserts that it is the same one.
recover() {
  local name=$1
  shift
  start "$name" "$BLOCKFERRY" recover "$name" "$@"
  same "$line" "$device" "the device of $name, recovered"
}

# load_is_whole: the load saw no error, and finds everything that it wrote.
load_is_whole() {
  STOP_LIMIT_S=150 ends_with 0 fio
}

# --- what must not be left

# block_devices: those that are ours to leave behind: ublk devices, and loop devices that are in use.
block_devices() {
  local loop
  for loop in /sys/block/loop*/loop/backing_file; do
    [ ! -e "$loop" ] || echo "/dev/$(cut -d/ -f4 <<<"$loop") $(cat "$loop")"
  done
  ls -d /sys/block/ublkb* /dev/ublkc* 2>/dev/null || true
}

fuse_mounts() { awk '$3 ~ /^fuse/ { print $2 }' /proc/self/mounts; }

devices_before=$(block_devices)
fuse_mounts_before=$(fuse_mounts)

programs() { pgrep -f "^$BLOCKFERRY " || true; }

threads_of() { awk '$1 == "Threads:" { print $2 }' "/proc/$1/status"; }

descriptors_of() { find "/proc/$1/fd" -mindepth 1 2>/dev/null | wc -l; }

# nothing_left: asserts that no device, mount or program of ours is there any more.
nothing_left() {
  wait_until "$STOP_LIMIT_S" "the end of our devices: $(block_devices)" no_devices
  same "$(fuse_mounts)" "$fuse_mounts_before" "FUSE mounts left"
  same "$(programs)" "" "programs left"
}

no_devices() { [ "$(block_devices)" = "$devices_before" ]; }

# mount_at DEVICE FOLDER [OPTION...]: mounts a file system, which the clean-up unmounts if the test does not.
mount_at() {
  local source=$1 folder=$2
  shift 2
  mkdir -p "$folder"
  mount "$@" "$source" "$folder"
  mounts+=("$folder")
}

# clean_up: at the end of every test. One that changes the machine has a function restore.
clean_up() {
  local status=$? name folder
  trap - EXIT
  trap '' INT TERM
  set +e
  for name in "${!pid_of[@]}"; do
    [ "$status" -eq 0 ] || [ "$status" -eq "$SKIP_STATUS" ] || { echo "--- $name.log" && tail -n 30 "$work/$name.log"; } >&2
    kill -KILL "${pid_of[$name]}" 2>/dev/null
  done
  # A device that outlives its process keeps whoever uses it waiting, also in his death.
  for name in $("$BLOCKFERRY" list --json 2>/dev/null | jq -r '.[].name'); do
    timeout 60 "$BLOCKFERRY" stop "$name" --force
  done
  for folder in "${mounts[@]}"; do
    ! mountpoint -q "$folder" || umount -l "$folder"
  done
  for name in "${!pid_of[@]}"; do
    wait "${pid_of[$name]}" 2>/dev/null
  done
  block_devices | awk -v work="$work/" 'index($2, work) == 1 { print $1 }' | xargs -r -n1 losetup -d
  fuse_mounts | grep "^$work/" | xargs -r umount -l
  ! declare -F restore >/dev/null || restore
  rm -rf --one-file-system "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 1' INT TERM
