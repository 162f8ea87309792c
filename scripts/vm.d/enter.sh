#!/bin/bash
# enter RUN_DIR: runs the command in a guest that is set up; its output and status go to RUN_DIR/answer.
run_dir=$1
: >"$run_dir/answer/started"
cd "$(cat "$run_dir/cwd")" || exit
OUT=$(cat "$run_dir/out_dir")
export OUT HOME=/root TERM=dumb
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/root/.cargo/bin
bash "$run_dir/command" >"$run_dir/answer/stdout" 2>"$run_dir/answer/stderr" </dev/null
echo $? >"$run_dir/answer/status"
sync
