# shellcheck shell=bash
# Runs steps and counts what passed, failed and was skipped. Sourced by ci/test, whose counters and $logs it uses.
# shellcheck disable=SC2154

SKIP_STATUS=77
# How much of a failed step's output is shown again at the end.
FAILURE_LINES=15
declare -A step_status=()

# skip_because REASON: ends a step as skipped.
skip_because() {
  printf 'skipped: %s\n' "$*"
  exit "$SKIP_STATUS"
}

# step NAME COMMAND...: counts for one. Each name runs once; its status is that of the command.
step() {
  local name=$1
  shift
  if [ -n "${step_status[$name]:-}" ]; then
    return "${step_status[$name]}"
  fi
  run_logged "$name" "$@"
  step_status[$name]=$status
  case $status in
  0) record passed "$name" "$took_s" ;;
  "$SKIP_STATUS") record skipped "$name" "$took_s" "$(grep '^skipped: ' "$logs/$name.log" | tail -n1 | cut -d' ' -f2-)" ;;
  *) record failed "$name" "$took_s" "exit status $status" "$logs/$name.log" ;;
  esac
  return "$status"
}

# cargo_step NAME COMMAND...: counts the tests that the command's test programs report. One that passed, but said
# "skipped: REASON" (which --show-output shows), counts as skipped; one that others start for their own use does not count.
cargo_step() {
  local name=$1 log=$logs/$1.log good bad reasons=()
  shift
  run_logged "$name" "$@"
  read -r good bad < <(sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' "$log" |
    awk '{ good += $1; bad += $2 } END { print good + 0, bad + 0 }')
  # A failure without a failed test: it did not build, or a test program died.
  [ "$status" -eq 0 ] || [ "$bad" -gt 0 ] || bad=1
  mapfile -t reasons < <(sed -nE 's/^skipped: //p' "$log")
  good=$((good - ${#reasons[@]}))
  mapfile -t -O "${#reasons[@]}" reasons < <(
    sed -nE 's/^test (.*) \.\.\. ignored,? ?(.*)/\1: \2/p' "$log" | grep -vE ': run by the other tests?$')
  passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + ${#reasons[@]}))
  note "$name" "$took_s" "$good passed, $bad failed, ${#reasons[@]} skipped"
  [ "$bad" -eq 0 ] || failures+=("$name: $(why_cargo_failed "$log")")
  skips+=("${reasons[@]/#/$name: }")
  [ $((good + bad + ${#reasons[@]})) -gt 0 ] || record skipped "$name" "$took_s" "there are no such tests"
}

# run_vm_tests PLACE "TEST..." COMMAND...: runs tests/vm/run on the tests by the command, which takes a line of bash as its last
# argument, as scripts/vm does. Each test counts.
run_vm_tests() {
  local place=$1 tests=$2 name test out log outcome seconds reason
  shift 2
  name=$place-$(basename "${tests%% *}" .sh)
  out=$logs/$name.out
  mkdir "$out"
  [ "$1" != ./scripts/vm ] || set -- "$@" --out "$out"
  OUT=$out run_logged "$name" "$@" "BLOCKFERRY='$binary' tests/vm/run $tests"
  if [ ! -s "$out/results" ] && grep -q '^Call Trace:' "$logs/$name.log"; then
    echo "-- $name: the test kernel fell over itself, and is started once more"
    OUT=$out run_logged "$name" "$@" "BLOCKFERRY='$binary' tests/vm/run $tests"
  fi
  for test in $tests; do
    test=$(basename "$test" .sh)
    # "OUTCOME SECONDS REASON"; nothing where the guest died before.
    read -r outcome seconds reason < <(sed -n "s/^$test //p" "$out/results" 2>/dev/null) ||
      read -r outcome seconds reason <<<"failed 0 the kernel ended before it did"
    [ -f "$out/$test.log" ] && log=$out/$test.log || log=$logs/$name.log
    record "$outcome" "$place $test" "$seconds" "$reason" "$log"
  done
}

# run_logged NAME COMMAND...: sets status and took_s; the output is shown and kept in $logs/NAME.log.
run_logged() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  ( limited "$@" ) 2>&1 </dev/null | tee "$logs/$name.log"
  status=${PIPESTATUS[0]}
  took_s=$((SECONDS - start))
}

# limited COMMAND...: a program under a time limit, or one of our functions, which keep limits of their own.
limited() {
  if [ "$(type -t "$1")" = function ]; then "$@"; else timeout -k 10 "$STEP_LIMIT_S" "$@"; fi
}

# record OUTCOME NAME SECONDS [REASON [LOG]]
record() {
  local outcome=$1 name=$2 took=$3 reason=${4:-} log=${5:-/dev/null}
  case $outcome in
  passed) passed=$((passed + 1)) ;;
  skipped) skipped=$((skipped + 1)) && skips+=("$name: $reason") ;;
  *) outcome=failed failed=$((failed + 1)) && failures+=("$name: $reason"$'\n'"$(tail -n "$FAILURE_LINES" "$log" | cut -c1-240)") ;;
  esac
  note "$name" "$took" "$outcome${reason:+ ($reason)}"
}

note() {
  local line
  line=$(printf '%-32s %5s s  %s' "$1" "$2" "$3")
  printf -- '-- %s\n' "$line"
  summary+=("$line")
}

# why_cargo_failed LOG: which tests failed and what they said, or the errors of the compiler.
why_cargo_failed() {
  {
    sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' "$1" | sort -u | xargs
    grep -E -A6 '^thread .* panicked at|^error(\[|:)' "$1" | head -n "$((4 * FAILURE_LINES))"
  } | cut -c1-240
}

# report: the last thing printed, and the exit status.
report() {
  printf '\n== summary (%s s in all)\n' "$SECONDS"
  printf '%s\n' "${summary[@]}"
  if [ ${#skips[@]} -gt 0 ]; then
    printf '\n== skipped\n'
    printf '%s\n' "${skips[@]}"
  fi
  if [ ${#failures[@]} -gt 0 ]; then
    printf '\n== failed\n'
    printf '%s\n' "${failures[@]}"
  fi
  printf '\n%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" -eq 0 ]
}
