#!/bin/bash
# Risk: without root there is no ublk device though the driver makes them; or there is one that cannot be removed, or whose
# process the kernel kills when the other end is silent.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"
need_ublk

RULES=/run/udev/rules.d/90-blockferry-test.rules
# The device's limit of 25 s for a request, and what a loaded machine takes besides.
SILENCE_LIMIT_S=60

cp "$BLOCKFERRY" "$work/blockferry"
BLOCKFERRY=$work/blockferry
mkdir "$work/home"
chmod 755 "$work" "$BLOCKFERRY"
chown 65534:65534 "$work/home"
as_user=(setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all
  env "HOME=$work/home" "TMPDIR=$work/home" "BLOCKFERRY_RUN_DIR=$work/home/run")
modes=$(stat -c '%a %n' /dev/ublk-control /dev/fuse)

# restore: for the clean-up.
restore() {
  xargs -n2 chmod <<<"$modes"
  rm -f "$RULES"
}

# user_attach NAME RESOURCE [OPTION...]: as attach, by a user without privileges.
user_attach() {
  local name=$1 resource=$2
  shift 2
  start "$name" "${as_user[@]}" "$BLOCKFERRY" mount "$resource" --direct --name "$name" "$@"
  device=$line
}

# give_nodes: what udev does by our rules.
give_nodes() {
  while sleep 0.02; do
    # A node may be gone by the time that it is looked at.
    find /dev -maxdepth 1 -name 'ublk[bc]*' -user root -exec "$BLOCKFERRY" udev {} \; || true
  done
}

as_user_refused() { refused "${as_user[@]}" "$BLOCKFERRY" "$@"; }

user_doctor() { "${as_user[@]}" "$BLOCKFERRY" doctor --json | jq -r "$1"; }

chmod 666 /dev/fuse
chmod 600 /dev/ublk-control
as_user_refused mount mem:16MiB --direct --device ublk
contains "$message" "blockferry udev" "what is needed where root alone commands the driver"
chmod 666 /dev/ublk-control
as_user_refused mount mem:16MiB --direct --device ublk
contains "$message" "blockferry udev" "what is needed where no rule gives nodes away"
same "$(user_doctor .device)" fuse "the device that doctor expects without a rule"
user_attach fallback mem:16MiB
"${as_user[@]}" test -f "$device" || fail "without a rule auto made '$device', no FUSE file"
contains "$(cat "$work/fallback.log")" "not ublk" "what auto says of ublk"
detach fallback

mkdir -p "$(dirname "$RULES")"
"$BLOCKFERRY" udev >"$RULES"
if [ ! -S /run/udev/control ]; then # No udev: the rule is there, and nobody follows it.
  as_user_refused mount mem:16MiB --direct --device ublk --name orphan
  contains "$message" "was not given to this user" "a device that root keeps"
  contains "$("${as_user[@]}" "$BLOCKFERRY" list)" dead "the list, with a device that root keeps"
  as_user_refused stop orphan
  for node in /dev/ublkc*; do "$BLOCKFERRY" udev "$node"; done
  "${as_user[@]}" "$BLOCKFERRY" stop orphan
  no_devices || fail "left after stop: $(block_devices)"
fi

launch udev give_nodes
same "$(user_doctor .device)" ublk "the device that doctor expects with a rule"
truncate -s 32M "$work/home/disk.img"
chown 65534:65534 "$work/home/disk.img"
for resource in mem:32MiB "file:$work/home/disk.img"; do
  user_attach local "$resource"
  contains "$device" /dev/ublkb "the device that auto makes for a user"
  same "$(stat -c %u "$device")" 65534 "owner of the device"
  verify_io "$device" 8
  detach local
done
same "$(cat "$work/local.log")" "" "what a user's mount says"

user_attach killed mem:16MiB
crash killed
contains "$("${as_user[@]}" "$BLOCKFERRY" list)" dead "the list, after a user's mount was killed"
"${as_user[@]}" "$BLOCKFERRY" stop killed
no_devices || fail "left after stop: $(block_devices)"

serve server mem:16MiB
user_attach remote "$ticket" --io-timeout 0
kill -STOP "${pid_of[server]}"
! timeout "$SILENCE_LIMIT_S" dd if="$device" of=/dev/null bs=4k count=1 iflag=direct status=none || fail "read from a silent server"
! gone "${pid_of[remote]}" || fail "the kernel killed a mount whose server was silent"
kill -CONT "${pid_of[server]}"
verify_io "$device" 8
detach remote
detach server
crash udev
nothing_left
