#!/bin/bash
# Risk: bad input ends in a panic, a hang or a device that cannot work, rather than in a clear error.
# shellcheck source=tests/vm/lib.bash
. "$(dirname "$0")/lib.bash"

# rejected WORD COMMAND...: asserts a failure or a usage error that says WORD.
rejected() {
  local word=$1 status=0
  shift
  message=$(timeout 60 "$@" 2>&1 </dev/null) || status=$?
  [ "$status" -eq 1 ] || [ "$status" -eq 2 ] || fail "'$*' ended with status $status: $message"
  [ -n "$message" ] || fail "'$*' says nothing"
  contains "$message" "$word" "the message of '$*'"
  [[ $message != *panicked* ]] || fail "'$*' panicked: $message"
}

direct() { rejected "$1" "$BLOCKFERRY" mount "${@:2}" --direct --name bad; }

: >"$work/empty.img"
truncate -s 16M "$work/disk.img"
direct missing.img "file:$work/missing.img"
direct empty.img "file:$work/empty.img"
direct directory "file:$work"
direct nowhere nowhere:/x
for size in 1Gb -1 0 "" 99999999999GiB; do
  direct "" "mem:$size"
done
direct depth mem:16MiB --depth 0
direct queues mem:16MiB --queues 0

for garbage in blockferry:// "blockferry://host" "blockferry://127.0.0.1:1/disk#garbage" "blockferry://127.0.0.1:x/disk#a.b"; do
  rejected "" "$BLOCKFERRY" mount "$garbage" --direct --name bad
done
rejected "" "$BLOCKFERRY" mount "@$work/missing" --direct --name bad

serve server "disk=file:$work/disk.img"
rejected "$(address_of "$ticket" | cut -d: -f2)" "$BLOCKFERRY" serve "other=mem:16MiB" --state-dir "$work/other" \
  --listen "$(address_of "$ticket")"
rejected disk.img "$BLOCKFERRY" serve "again=file:$work/disk.img" --state-dir "$work/again" --listen 127.0.0.1:0
rejected "" "$BLOCKFERRY" mount "${ticket/\/disk#/\/nobody#}" --direct --name bad
contains "$message" nobody "the message on an unknown volume"
"$BLOCKFERRY" ticket disk --rotate --state-dir "$work/server.state" >"$work/rotated"
rejected "" "$BLOCKFERRY" mount "$ticket" --direct --name bad
attach rotated "@$work/rotated"
detach rotated
detach server
nothing_left
