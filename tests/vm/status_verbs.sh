#!/bin/bash
# Risk: list and status say something else than what runs, or their JSON cannot be read by a program.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

truncate -s 32M "$work/disk.img"
serve server "disk=file:$work/disk.img"
same "$("$BLOCKFERRY" ticket disk --state-dir "$work/server.state")" "$ticket" "the ticket, printed again"
attach first mem:16MiB
first_device=$device
attach second "$ticket"

listed=$("$BLOCKFERRY" list --json)
same "$(jq -r '[.[].name] | sort | join(" ")' <<<"$listed")" "first second" "names in the list"
same "$(jq -r '.[] | select(.name == "first").device' <<<"$listed")" "$first_device" "device in the list"
contains "$("$BLOCKFERRY" list)" "$first_device" "the list for people"
! grep -q "${ticket##*#}" <<<"$("$BLOCKFERRY" list)$listed" || fail "the list shows the secret of a ticket"

dd if=/dev/zero of="$device" bs=64k count=8 oflag=direct status=none
status=$("$BLOCKFERRY" status second --json)
[ "$(jq '[.. | .writes? | numbers] | max' <<<"$status")" -ge 8 ] || fail "status counts too few writes: $status"
refused "$BLOCKFERRY" status nobody
contains "$message" nobody "the status of what is not there"
"$BLOCKFERRY" stop first
ends_with 0 first
detach second
same "$("$BLOCKFERRY" list --json)" "[]" "the list when nothing runs"
detach server
nothing_left
